"""Tasks from a user's own code: `--task FILE.py:CLASS` or `--task PACKAGE.MODULE:CLASS`.

The code runs in this process: name only files that you trust. A run remembers its task by this name.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from minivapo.errors import UserError

METHODS = ("train_problems", "test_problems", "judge")


def split(name: str) -> tuple[str, str] | None:
    """(file or module, class) of a task's name; None if it has another form."""
    where, _, what = name.rpartition(":")
    module = all(part.isidentifier() for part in where.split("."))
    return (where, what) if what.isidentifier() and (module or where.endswith(".py")) else None


def make_custom_task(name: str, tokenizer: Callable[[], Any] | None = None, **options: Any) -> Any:
    """The task that a class or function of the user's makes.

    Args:
        name: FILE.py:CLASS or PACKAGE.MODULE:CLASS; the working directory is searched for the package too.
        tokenizer: loads the policy's; called if the class has a parameter `tokenizer`.
        options: `max_prompt_tokens` goes to a class that has this parameter; every other one has to be a parameter.

    Raises:
        UserError: there is no such file, module or class, its code fails, or what it makes is no task.
    """
    parts = split(name)
    assert parts is not None
    where, what = parts
    factory = getattr(load_module(where), what, None)
    if not callable(factory):
        raise UserError(f"{where} has no class '{what}'; a task is named FILE.py:CLASS or PACKAGE.MODULE:CLASS.")
    known = inspect.signature(factory).parameters
    if "max_prompt_tokens" not in known:
        options.pop("max_prompt_tokens", None)
    wrong = [option for option in options if option not in known]
    if wrong:
        raise UserError(f"the task '{name}' has no option '{wrong[0]}'; its parameters: {', '.join(known) or 'none'}.")
    if tokenizer is not None and "tokenizer" in known:
        options["tokenizer"] = tokenizer()
    task = guarded(where, lambda: factory(**options))
    missing = [method for method in METHODS if not callable(getattr(task, method, None))]
    if missing:
        raise UserError(
            f"{name} has no method {missing[0]}: a task needs {', '.join(METHODS)}; see docs/write-a-task.md."
        )
    if not getattr(task, "name", ""):
        task.name = what.lower()
    if not hasattr(task, "stop"):
        task.stop = ()
    if isinstance(task.stop, str) or not all(isinstance(text, str) and text for text in task.stop):
        # The letters of a text would each end a response, and an empty one is in every response.
        raise UserError(f"{name} has stop = {task.stop!r}: it must be a tuple of texts that are not empty.")
    return task


def load_module(where: str) -> ModuleType:
    """The module of a file or of a dotted name.

    Raises:
        UserError: there is none, or its code fails.
    """
    if not where.endswith(".py"):
        if "" not in sys.path:
            sys.path.append("")  # as `python -m` has it; last, so that nothing of ours is hidden
        try:
            return guarded(where, lambda: importlib.import_module(where))
        except ModuleNotFoundError as error:
            raise UserError(f"there is no task and no module '{error.name}'.") from None
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{where}: there is no such file.")
    name = f"minivapo_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    loader = spec and spec.loader
    assert spec and loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    guarded(where, lambda: loader.exec_module(module))
    return module


def guarded(where: str, run: Callable[[], Any]) -> Any:
    """What `run` returns; an exception of the user's code in one line, with the place where it was raised.

    Raises:
        UserError: it raised.
        ModuleNotFoundError: it did, for a module of the name's own.
    """
    try:
        return run()
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{where}.".startswith(f"{error.name}."):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = error.lineno if isinstance(error, SyntaxError) else frame.lineno
        file = error.filename if isinstance(error, SyntaxError) else frame.filename
        text = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(f"{file}, line {line}: {type(error).__name__}: {text}") from error
