"""Real mathematics: GSM8K, DAPO-Math-17k, AIME 2024 and 2025, and your own jsonl file.

    task = make_math_task("gsm8k")                            # from the hub; needs the extra math
    task = make_math_task("dapo-math:dapo-math-17k.parquet")  # the same columns in a local file

From rows (`minivapo.tasks.sources`) to problems: duplicates, held-out problems, order. Prompts are rendered in
`minivapo.tasks.prompts`, answers judged in `minivapo.tasks.verifier`. Importing this module loads neither datasets nor
math-verify.
"""

from __future__ import annotations

import logging
import math
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from minivapo.interfaces import Problem, UserError
from minivapo.responses import encode_prompt
from minivapo.tasks.answers import Unreadable
from minivapo.tasks.answers.compare import equal
from minivapo.tasks.prompts import bare_question, question_key, render
from minivapo.tasks.sources import SOURCES, Row, read_file, read_hub, read_row
from minivapo.tasks.verifier import Verifier

MATH_TASKS = tuple(SOURCES)
"""Names that `make_math_task` knows, each alone or followed by `:PATH` (jsonl always)."""

logger = logging.getLogger("minivapo")


@dataclass
class LoadReport:
    """Where every row went; `rows` is the sum of all the other counts."""

    rows: int = 0
    train: int = 0
    test: int = 0
    duplicates: int = 0
    """Repetitions of a question with the same answer."""
    contradictory: int = 0
    """Rows of questions that occur with different answers: none of them is used."""
    in_test: int = 0
    """Training rows whose question is in the test split."""
    overlong: int = 0
    """Questions whose prompt has more than `max_prompt_tokens` tokens."""

    def __str__(self) -> str:
        """One line for a log."""
        dropped = [
            f"{self.duplicates:,} duplicates",
            f"{self.contradictory:,} with contradictory answers",
            f"{self.in_test:,} also in the test split",
            f"{self.overlong:,} over-long prompts",
        ]
        dropped = [text for text in dropped if not text.startswith("0 ")]
        tail = f"; dropped: {', '.join(dropped)}" if dropped else ""
        return f"{self.rows:,} rows: {self.train:,} for training, {self.test:,} held out{tail}"


@dataclass(repr=False)
class MathTask:
    """A finite set of problems as a `minivapo.interfaces.Task`.

    Attributes:
        name: As given to `make_math_task`, without the path.
        train: Problems to train on; empty for evaluation-only tasks.
        test: Held-out problems, in file order.
        report: Where every row of the data went.
        stop: Stop strings.
        verifier: Judges responses; its counts cover this task alone unless it was passed in.
        left_out: Held-out problems whose prompts were too long.
        about: What is asked, for people.
    """

    name: str
    train: list[Problem]
    test: list[Problem]
    report: LoadReport
    verifier: Verifier
    stop: tuple[str, ...] = ()
    left_out: int = 0
    about: str = "Questions of mathematics. A response is right if its final answer equals the right one."
    _orders: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"MathTask({self.name!r}, {len(self.train):,} for training, {len(self.test):,} held out)"

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        """Problems start … start + count − 1 of an endless stream: every epoch a new order, fixed by the seed.

        Raises:
            UserError: the task is for evaluation alone.
        """
        if not self.train:
            raise UserError(f"{self.name} is for evaluation only; train on gsm8k, dapo-math or jsonl:PATH.")
        size = len(self.train)
        return [self.train[self._order(seed, i // size)[i % size]] for i in range(start, start + count)]

    def _order(self, seed: int, epoch: int) -> list[int]:
        if (seed, epoch) not in self._orders:
            while len(self._orders) > 3:
                self._orders.pop(next(iter(self._orders)))
            order = list(range(len(self.train)))
            random.Random(f"{seed}/{epoch}").shuffle(order)
            self._orders[seed, epoch] = order
        return self._orders[seed, epoch]

    def test_problems(self, count: int | None = None) -> list[Problem]:
        """The first `count` held-out problems in the order of the file; all of them without a count."""
        return self.test[:count]

    def judge(
        self, problems: Sequence[Problem], responses: Sequence[str], seconds: float = math.inf
    ) -> list[bool | None]:
        """Right or wrong by the final answer alone; None where the verifier itself failed or its time was up."""
        return self.verifier.grade_many(responses, [problem.answer for problem in problems], seconds)


def make_math_task(
    spec: str,
    *,
    template: Literal["base", "chat", "none"] | None = None,
    tokenizer: Any = None,
    max_prompt_tokens: int | None = None,
    held_out: float = 0.05,
    stop: tuple[str, ...] = (),
    verifier: Verifier | None = None,
) -> MathTask:
    """Load a task, say on the log where every row went, and have its verifier ready.

    Args:
        spec: `gsm8k`, `dapo-math`, `aime2024` or `aime2025`, from the hub; the same with `:PATH`, from a
            parquet or jsonl file with the same columns (for GSM8K also a folder that has both splits, as
            `hf download` leaves it); or `jsonl:PATH` with the columns prompt and answer.
        template: `base` for base models; `chat` for the tokenizer's chat template; `none` for the question
            as it stands in the data. By default `base`, and `none` for jsonl.
        tokenizer: A transformers tokenizer, for the chat template and for counting tokens.
        max_prompt_tokens: Longer prompts are dropped, and counted in the report; None keeps all.
        held_out: Share of the questions held out, by a hash of the question, where the data has no test split; 1
            holds out all of them, for evaluation alone.
        stop: Stop strings of the task.
        verifier: Shared with other tasks; by default one of its own with two workers.

    Returns:
        The task.

    Raises:
        UserError: bad input, in one line.
        ImportError: datasets or math-verify is not installed.
    """
    name, _, path = spec.partition(":")
    if name not in SOURCES:
        raise UserError(f"there is no task '{name}'; choose one of {', '.join(MATH_TASKS)}, with or without :PATH.")
    if name == "jsonl" and not path:
        raise UserError("the task jsonl needs a file: jsonl:PATH.")
    if not 0 < held_out <= 1:
        raise UserError(f"held_out={held_out} must lie between 0 and 1.")
    if max_prompt_tokens is not None and tokenizer is None:
        raise UserError("max_prompt_tokens needs a tokenizer to count with.")
    # Choice: plain text for base models, as the paper starts from one, even if the tokenizer has a chat template.
    template = template or ("none" if name == "jsonl" else "base")
    render("", template, tokenizer)  # a template that cannot work fails before gigabytes are read
    verifier = verifier or Verifier()
    report = LoadReport()
    splits = {split: _distinct(name, records, report) for split, records in _open(name, path).items()}
    train, test = _divide(splits, held_out, report)
    left_out, made = 0, dict[str, list[Problem]]()
    for split, rows in (("train", train), ("test", test)):
        made[split] = []
        for row in rows:
            question = row.question if template == "none" else bare_question(row.question)
            prompt = render(question, template, tokenizer)
            if max_prompt_tokens is not None and _tokens(tokenizer, prompt) > max_prompt_tokens:
                report.overlong += 1
                left_out += split == "test"
                continue
            made[split].append(Problem(prompt, row.answer, f"{name}/{question_key(bare_question(row.question))[:16]}"))
    report.train, report.test = len(made["train"]), len(made["test"])
    if not made["test"] or (SOURCES[name].train and not made["train"] and held_out < 1):
        raise UserError(f"{spec}: no problems are left ({report}).")
    logger.info("%s: %s", spec, report)
    return MathTask(name, made["train"], made["test"], report, verifier, stop, left_out)


def _tokens(tokenizer: Any, prompt: str) -> int:
    return len(encode_prompt(tokenizer, prompt, sys.maxsize))


def _open(name: str, path: str) -> dict[str, Iterable[tuple[str, dict[str, Any]]]]:
    """The records of each split that there is: train, test, or `all` where one file holds both."""
    source = SOURCES[name]
    if not path:
        pairs = (("train", source.train), ("test", source.test))
        found = {split: read_hub(source, hub_split) for split, hub_split in pairs if hub_split}
        return {"all": found["train"]} if set(found) == {"train"} else dict(found)
    place = Path(path).expanduser()
    if place.is_dir() and source.train and source.test:
        folder = place / source.config if source.config and (place / source.config).is_dir() else place
        files = {
            split: sorted(f for f in folder.rglob(f"*{split}*") if f.suffix in (".parquet", ".jsonl"))
            for split in ("train", "test")
        }
        if not all(files.values()):
            raise UserError(f"{place}: no train and test files (.parquet or .jsonl) in this folder; give one file.")
        return {split: (r for file in paths for r in read_file(file)) for split, paths in files.items()}
    return {"all" if source.train else "test": read_file(place)}


def _distinct(name: str, records: Iterable[tuple[str, dict[str, Any]]], report: LoadReport) -> dict[str, Row]:
    """Each question once: repetitions and contradictions are counted, and the latter left out."""
    rows: dict[str, Row] = {}
    times: Counter[str] = Counter()
    contradicted: set[str] = set()
    keys: dict[str, str] = {}  # DAPO-Math-17k repeats each text a hundred times in 1.8 million rows
    for where, record in records:
        row = read_row(name, record, where)
        key = keys.get(row.question) or question_key(bare_question(row.question))
        keys[row.question] = key
        report.rows += 1
        times[key] += 1
        first = rows.setdefault(key, row)
        if first.answer != row.answer and not _same_gold(first.answer, row.answer):
            contradicted.add(key)
    for key in contradicted:
        del rows[key]
        report.contradictory += times[key]
    report.duplicates += sum(times[key] - 1 for key in rows)
    return rows


def _same_gold(a: str, b: str) -> bool:
    try:
        return equal(a, b) is True
    except Unreadable:
        return False


def _divide(splits: dict[str, dict[str, Row]], held_out: float, report: LoadReport) -> tuple[list[Row], list[Row]]:
    """Training and test rows. Without a test split a question's hash decides, so the split survives new rows."""
    if "all" not in splits:
        train, test = splits.get("train", {}), splits.get("test", {})
        report.in_test = sum(key in test for key in train)
        return [row for key, row in train.items() if key not in test], list(test.values())
    rows = splits["all"]
    chosen = {key for key in rows if int(key[:13], 16) < held_out * 16**13}
    if len(rows) > 1:
        if not chosen:
            chosen = {min(rows)}
        elif len(chosen) == len(rows) and held_out < 1:
            chosen.remove(max(chosen))
    return [row for key, row in rows.items() if key not in chosen], [rows[key] for key in rows if key in chosen]
