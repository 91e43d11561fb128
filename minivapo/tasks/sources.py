"""Questions and answers out of each data set's own columns: hub, parquet, jsonl."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivapo.errors import UserError
from minivapo.files import json_lines
from minivapo.tasks.verifier import require_math


@dataclass(frozen=True)
class Row:
    """A question with its gold answer, before any template; `where` names it in messages."""

    question: str
    answer: str
    where: str


@dataclass(frozen=True)
class Source:
    """A data set on the hub, and what its rows look like."""

    hub: str
    config: str | None
    train: str | None
    test: str | None
    columns: str


SOURCES = {
    "gsm8k": Source("openai/gsm8k", "main", "train", "test", "question, answer"),
    "dapo-math": Source("BytedTsinghua-SIA/DAPO-Math-17k", None, "train", None, "prompt, reward_model"),
    "aime2024": Source("HuggingFaceH4/aime_2024", None, None, "train", "problem, answer"),
    "aime2025": Source("math-ai/aime25", None, None, "test", "problem, answer"),
    "jsonl": Source("", None, "train", None, "prompt, answer"),
}
"""Where each task comes from. AIME is for evaluation alone; its 30 problems are in one split on the hub."""


EXAMPLE = '{"prompt": "1 + 1 = ", "answer": "2"}'


def read_row(name: str, record: dict[str, Any], where: str) -> Row:
    """Question and answer of one record.

    Args:
        name: One of `MATH_TASKS`.
        record: Column name -> value.
        where: File and row, for messages.

    Returns:
        The row; its answer is what follows `####` for GSM8K, `reward_model.ground_truth` for DAPO-Math.

    Raises:
        UserError: a column is missing, empty, or holds what is no question or no answer.
    """
    columns = {str(key).lower(): value for key, value in record.items()}
    if "reward_model" in columns and "prompt" in columns:
        # verl's layout: chat messages and a struct, or both as JSON text; DAPO-Math-17k and some copies of AIME use it.
        question = _question(_from_json(columns["prompt"], list), where)
        model = _from_json(columns["reward_model"], dict)
        if not isinstance(model, dict) or "ground_truth" not in model:
            raise UserError(f"{where}: the column reward_model needs an object with ground_truth, not {_short(model)}.")
        answer = model["ground_truth"]
    else:
        names = ("prompt",) if name == "jsonl" else ("question", "problem")
        found = next((column for column in names if column in columns), None)
        if found is None or "answer" not in columns or name == "dapo-math":
            raise UserError(
                f"{where}: {name} needs the columns {SOURCES[name].columns}; "
                f"there are only {', '.join(map(str, record))}."
            )
        question, answer = _question(columns[found], where), columns["answer"]
    if not question.strip():
        raise UserError(f"{where}: the question is empty; fill it in or remove the row.")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: the question is not valid Unicode text (half of a surrogate pair).") from None
    text = _gold(answer, where)
    if name == "gsm8k" and "####" not in text:
        raise UserError(f"{where}: the answer has no '#### ' line with the final number, as GSM8K's answers do.")
    text = text.rpartition("####")[2].strip() if name == "gsm8k" else text.strip()
    if not text:
        raise UserError(f"{where}: the answer is empty; fill it in or remove the row.")
    return Row(question, text, where)


def _question(value: Any, where: str) -> str:
    """The question in a text, in chat messages (the last of the user) or in a list with one text."""
    if value is None or isinstance(value, str):
        return value or ""
    messages: Any = (
        [{"role": "user", "content": value[0]}] if _is_list(value) and [*map(type, value)] == [str] else value
    )
    if _is_list(messages) and all(isinstance(m, dict) for m in messages):
        content: Any = next((m.get("content") for m in reversed(messages) if m.get("role", "user") == "user"), "")
        if _is_list(content) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            content = "".join(part["text"] for part in content)
        if content is None or isinstance(content, str):
            return content or ""
    raise UserError(f"{where}: the question must be a text or a list of chat messages, not {_short(value)}.")


def _gold(value: Any, where: str) -> str:
    r"""The gold answer as text; a list is a set, in any order: [1, 2] becomes \{1, 2\}."""
    if _is_list(value) and value and all(isinstance(item, str | int | float) for item in value):
        items = [_gold(item, where) for item in value]
        return items[0] if len(items) == 1 else f"\\{{{', '.join(items)}\\}}"
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a parquet column of whole numbers with a gap in it is read as floats
    if not isinstance(value, str | int | float):
        raise UserError(
            f"{where}: the answer must be a text, a number or a list of these (a set), not {_short(value)}; "
            "write it as text, in LaTeX where it needs it."
        )
    return str(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _from_json(value: Any, kind: type) -> Any:
    """What a text holds if it is JSON of that kind, else the value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{" if kind is list else "{"):
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if isinstance(found, kind) else value
    return value


def _short(value: Any) -> str:
    return f"{type(value).__name__} {repr(value)[:40]}"


def read_file(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) for each row of a parquet or jsonl file.

    Raises:
        UserError: there is no such file, or it is neither.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'a folder; give a file' if path.is_dir() else 'there is no such file'}.")
    if path.suffix in (".jsonl", ".json"):
        # Not through datasets: its reader fails where answers are numbers in one row and text in another.
        with path.open("rb") as file:
            for line in json_lines(file):
                where = f"{path}, line {line.number}"
                if line.row is None:
                    raise UserError(f"{where}: no JSON object; a jsonl file has one a line, such as {EXAMPLE}.")
                yield where, line.row
        return
    if path.suffix != ".parquet":
        raise UserError(f"{path}: unknown kind of file; expected .parquet or .jsonl.")
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise UserError(f"{path}: not a parquet file.")
    require_math("datasets")
    import datasets

    try:
        # Streaming reads the file as it is, without a copy of it in the cache of datasets.
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, record in enumerate(rows, 1):
            yield f"{path}, row {number}", dict(record)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: not a readable parquet file ({_one_line(error)}).") from None


def read_hub(source: Source, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, record) for each row of a split on the hub, or of its copy in the cache.

    Raises:
        UserError: it is neither reachable nor in the cache.
    """
    require_math("datasets")
    import datasets
    import huggingface_hub

    offline = bool(huggingface_hub.constants.HF_HUB_OFFLINE)
    if not offline:
        try:
            huggingface_hub.HfApi().dataset_info(source.hub, timeout=10)
        except Exception:  # load_dataset alone would retry for 20 s before it looks into its cache
            offline = True
    try:
        with _offline(datasets, huggingface_hub) if offline else contextlib.nullcontext():
            rows = datasets.load_dataset(source.hub, source.config, split=split)
    except Exception as error:
        raise UserError(
            f"{source.hub} cannot be read from the Hugging Face hub and is not in its cache ({_one_line(error)}): "
            f"give a local parquet or jsonl file as NAME:PATH, or download it on a machine with a network and set "
            f"HF_HUB_OFFLINE=1 here."
        ) from None
    for number, record in enumerate(rows, 1):
        yield f"{source.hub} {split}, row {number}", dict(record)


@contextlib.contextmanager
def _offline(*packages: Any) -> Iterator[None]:
    """Make the hub's packages use their caches at once instead of retrying."""
    places: list[Any] = [getattr(package, name, None) for package in packages for name in ("config", "constants")]
    before = [(place, place.HF_HUB_OFFLINE) for place in places if hasattr(place, "HF_HUB_OFFLINE")]
    for place, _ in before:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in before:
            place.HF_HUB_OFFLINE = value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
