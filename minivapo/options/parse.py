"""Words and YAML files into dataclasses: one road for `minivapo`, `scaled.train` and `scaled.plan`.

A config file holds `key: value` lines; its keys are the flags, so it is read as words that stand before those of the
command line. tyro turns words into dataclasses; a mistake becomes one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from tyro import _errors as events  # a private module: the tests of messages fail if a release of tyro changes it

from minivapo.errors import UsageError, UserError
from minivapo.options.fields import check

T = TypeVar("T")
ConfigFile = Annotated[Path | None, tyro.conf.arg(name="config")]
RunFolder = Annotated[Path | None, tyro.conf.arg(aliases=["--run-dir"])]  # torchrun takes --run for a flag of its own


TaskOptions = Annotated[
    tuple[str, ...], tyro.conf.arg(name="task-option", metavar="KEY=VALUE"), tyro.conf.UseAppendAction
]
"""A flag that may be given several times: --task-option min_terms=2 --task-option max_terms=2."""


def task_options(given: Iterable[str], template: str | None = None) -> dict[str, Any]:
    """Options of a task that a flag was given for; values are read as YAML: 2, true, [1, 2], text.

    Raises:
        UsageError: one of them is not key=value.
    """
    import yaml

    options: dict[str, Any] = {"template": template} if template else {}
    for word in given:
        key, equals, value = word.partition("=")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(
                f"--task-option {word}: the value is not YAML; quote text, as in key='\"a: b\"'."
            ) from None
        if not key.isidentifier() or not equals:
            raise UsageError(f"--task-option is '{word}'; it must be key=value.")
    return options


def task_words(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Recorded options of a task as the words of --task-option."""
    return tuple(f"{key}={json.dumps(value)}" for key, value in options.items())


@dataclass(frozen=True)
class Start:
    """The flags that decide the defaults of all others."""

    config: Path | None = None
    preset: str | None = None
    resume: Path | None = None
    branch_from: str | None = None
    task: str | None = None
    model: str | None = None
    critic: str | None = None


@dataclass(frozen=True)
class Words:
    """What a run is told, before it is understood: the words of its config file, then those of the command line."""

    file: tuple[str, ...]
    given: tuple[str, ...]
    start: Start

    @property
    def all(self) -> list[str]:
        """In this order a flag overrules the file."""
        return [*self.file, *self.given]


def read_words(kind: type, words: Sequence[str]) -> Words:
    """Brings words into one spelling, and those of the config file that they name.

    Besides `--key value` and `--key=value` this takes `key=value`, `--switch true`, and a config file as first word.

    Args:
        kind: the dataclass that the words are for.
        words: of the command line.

    Raises:
        UserError: there is no such file, or it does not hold `key: value` lines.
    """
    words = list(words)
    if words and not words[0].startswith("-") and "=" not in words[0]:
        words = ["--config", *words]
    given = spell(kind, words)
    path = first_flags(given).config
    file = [] if path is None else spell(kind, file_words(read_yaml(path)))
    start = dataclasses.replace(first_flags([*file, *given]), config=path)
    return Words(tuple(file), tuple(given), start)


def first_flags(words: Sequence[str]) -> Start:
    """Those of `Start`, wherever they stand."""
    with events.on_parse_error(lambda event: fail(event, "", {}, None)):
        return tyro.cli(Start, args=words, return_unknown_args=True, add_help=False)[0]


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys of a config file.

    Raises:
        UserError: no such file, or it does not hold `key: value` lines.
    """
    import yaml

    if not path.is_file():
        raise UserError(f"no such config file: {path}. The examples are in scaled/configs/.")
    try:
        given = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(given, dict):
        raise UserError(f"{path} must hold `key: value` lines.")
    return given


def file_words(given: Mapping[str, Any]) -> list[str]:
    """Keys and values as the flags they stand for; a key without a value stands for its default."""
    words = []
    for key, value in given.items():
        if isinstance(value, dict):  # a flag that may be given several times
            words += [word for name, x in value.items() for word in (f"--{key}", f"{name}={json.dumps(x)}")]
        elif isinstance(value, list | tuple):
            words += [f"--{key}", *map(str, value)]
        elif value is not None:
            words.append(f"--{key}={value}")
    return words


def spell(kind: type, words: Iterable[str]) -> list[str]:
    """`key=value` as `--key=value`; `--switch true` as `--switch`, and false as `--no-switch`."""
    kinds, result, rest = options(kind), [], list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        name = key.removeprefix("--").replace("-", "_")
        takes_value = key.startswith("--") and not equals and kinds.get(name, bool) is not bool
        if kinds.get(name) is bool and key.startswith("--") and not equals and rest and rest[0].lower() in SWITCH:
            equals, value = "=", rest.pop(0)
        if kinds.get(name) is bool and equals and value.lower() in SWITCH:
            result.append(f"--{'' if SWITCH[value.lower()] else 'no-'}{name.replace('_', '-')}")
        else:
            result.append(f"--{word}" if equals and name in kinds and not word.startswith("-") else word)
        if takes_value and rest and not rest[0].startswith("--"):
            result.append(rest.pop(0))  # its value, even if that reads like `key=value`
    return result


ALIASES = {"config": "file", "run_dir": "run"}
SWITCH = {"true": True, "false": False}


def options(kind: type) -> dict[str, Any]:
    """Every option of a dataclass and those nested in it -> its type."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        found |= options(hint) if dataclasses.is_dataclass(hint) and isinstance(hint, type) else {name: hint}
    return found


def parse(kind: type[T], words: Sequence[str] | Words, prog: str, default: T | None = None) -> T:
    """Words as a dataclass, with every number in its range.

    Args:
        kind: a dataclass; its docstrings are the help.
        words: of the command line; from `read_words` those of a config file as well.
        prog: the command, for messages.
        default: an instance whose values stand where no word says otherwise.

    Raises:
        UsageError: one line on what is wrong.
        SystemExit: after `--help`, with code 0.
    """
    words = words if isinstance(words, Words) else Words((), tuple(words), Start())
    extra: dict[str, Any] = {} if default is None else {"default": default}
    with events.on_parse_error(lambda event: fail(event, prog, options(kind), words)):
        args = tyro.cli(kind, args=words.all, prog=prog, **extra)
    try:
        check(args, flags=True)
    except UserError as error:
        raise UsageError(str(error)) from None
    return args


def fail(event: events.ParseErrorEvent, prog: str, known: Mapping[str, Any], words: Words | None) -> NoReturn:
    """Raises what tyro would draw a box for, as one line.

    Raises:
        UsageError: always.
    """
    argument = getattr(event, "argument", None)
    flag = flag_of(argument) if argument else ""
    unknown = [w for w in words.all if w.startswith("--") and option_of(w) not in known] if words else []
    if unknown and unknown[0] != "--help" and not isinstance(event, events.UnrecognizedArgs):
        event = events.UnrecognizedArgs(prog, unknown)  # a flag that does not exist hides what is missing behind it
    match event:
        case events.UnrecognizedArgs(tokens=tokens):
            flag = tokens[0].partition("=")[0]
            near = difflib.get_close_matches(option_of(flag), list(known), n=1)
            no = "no-" if near and known[near[0]] is bool and flag.startswith("--no-") else ""
            hint = f"; perhaps you meant --{no}{near[0].replace('_', '-')}" if near and flag.startswith("--") else ""
            text = f"Unrecognized options: {', '.join(tokens)}{hint}."
        case events.InvalidChoice(value=value, choices=choices):
            text = f"{flag} is {value}; it must be one of {', '.join(choices)}."
        case events.BadValue():
            text = f"{flag} needs a value."
        case events.MissingArgs(missing_arguments=missing):
            text = f"{' and '.join(flag_of(x.arg) for x in missing)} must be given."
        case events.InstantiationFailure(message=message):
            text = f"{flag} takes {argument.lowered.metavar}: {message}." if argument else message
        case _:
            text = f"the words cannot be read ({type(event).__name__})."
    keys = [word.partition("=")[0].replace("_", "-") for word in words.file] if words else []
    given = [word.partition("=")[0].replace("_", "-") for word in words.given] if words else []
    if words and flag.replace("_", "-") in keys and flag.replace("_", "-") not in given:
        text = f"{words.start.config}: {text}"
    explained = f" `{prog} --help` explains each flag." if prog and not text.endswith("explains each flag.") else ""
    own = isinstance(event, events.InstantiationFailure) and not argument
    raise UsageError(text if own else text + explained)


def flag_of(argument: Any) -> str:
    """--like-this; what stands in no flag by its name in capitals."""
    if argument.is_positional():
        return str(argument.field.extern_name).upper()
    return argument.lowered.name_or_flags[-1]


def option_of(word: str) -> str:
    """The option that a flag is for: --no-decoupled-gae and --decoupled_gae=true are for decoupled_gae."""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    return ALIASES.get(name, name.removeprefix("no_"))


def changes(before: Any, after: Any) -> list[str]:
    """Options in which two instances of a dataclass differ, nested ones included."""
    found = []
    for field in dataclasses.fields(before):
        one, two = getattr(before, field.name), getattr(after, field.name)
        if dataclasses.is_dataclass(one):
            found += changes(one, two)
        elif one != two:
            found.append(field.name)
    return found


def refuse_changes(before: Any, after: Any, free: Iterable[str], why: str, where: str = "--resume") -> None:
    """Refuses flags on `--resume` that would change what the run was started with.

    Args:
        before: the options as the run has them.
        after: the same with what the user gave.
        free: options that may change.
        why: the end of the message.
        where: the flag that it does not go with.

    Raises:
        UsageError: names all such flags.
    """
    free = set(free)
    wrong = [f"--{name.replace('_', '-')}" for name in changes(before, after) if name not in free]
    if wrong:
        flags = " and ".join(filter(None, (", ".join(wrong[:-1]), wrong[-1])))
        raise UsageError(f"{flags} cannot be changed on {where}; {why}")
