r"""Hostile text through every verifier: half of it drawn from fragments of each language, the rest right answers with
something done to them, and the texts that the tests have.

Code in it makes a canary file if anybody runs it.
"""

from __future__ import annotations

import random
import resource
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from grade_cases import CASES, FRAGMENTS

from minivapo.interfaces import Problem
from minivapo.tasks import TASKS, make_task

WANTED, CHUNK, PROBLEMS = 100_000, 10_000, 50
GYM = ("chain_sum", "countdown", "puzzle24", "spell_backward", "n_queens")
VERIFIERS = (*TASKS, "mathematics", *(f"reasoning-gym:{name}" for name in GYM))

ODD = [
    " ", "\n", "\t", "\x00", "\x1b[31m", "\ud800", "\u200b", "\u202e", "٣", "²", "½", "√", "\N{PILE OF POO}", "﷽",
    "\r\n",
]  # fmt: skip
HUGE = ["9**9**9", "9^{9^{9^9}}", "10**100000", "1e400", "-0", "nan", "inf", "1/0", "((((", "{" * 60, "\\frac" * 60]
CODE = [
    "__import__('pathlib').Path({canary!r}).touch()",
    "open({canary!r}, 'w')",
    "exec(\"open({canary!r}, 'w')\")",
    "(lambda: open({canary!r}, 'w'))()",
    "eval(compile('1', '', 'eval'))",
    "[c for c in ().__class__.__base__.__subclasses__()]",
    "{{{{7*7}}}}${{7*7}}",
    "\\input{{{canary}}}\\write18{{touch {canary}}}",
    "'; touch {canary}; '",
    "$(touch {canary})",
]

Row = dict[str, Any]
Judge = Callable[[Sequence[Problem], Sequence[str]], list[Any]]


class Texts:
    """Makes hostile responses.

    Args:
        seed: names the stream.
        words: of the task's own language.
        canary: the file that code in them would make.
    """

    def __init__(self, seed: str, words: Sequence[str], canary: Path) -> None:
        self.rng = random.Random(seed)
        self.words, self.fragments = list(words), FRAGMENTS.split()
        self.code = [text.format(canary=str(canary)) for text in CODE]
        self.known = [response for cases in CASES.values() for response, *_ in cases]

    def piece(self) -> str:
        """A fragment."""
        kind = self.rng.choices((self.words, self.fragments, ODD, HUGE, self.code, self.known), (30, 30, 20, 2, 8, 10))[
            0
        ]
        return self.rng.choice(kind)

    def soup(self) -> str:
        """Fragments in a row, now and then very many."""
        length = self.rng.choices((self.rng.randint(0, 14), self.rng.randint(100, 400)), (49, 1))[0]
        text = self.rng.choice(("", " ", "\n")).join(self.piece() for _ in range(length))
        return self.framed(text) if self.rng.random() < 0.5 else text

    def framed(self, text: str) -> str:
        """A text where an answer is looked for."""
        frame = self.rng.choice(("\\boxed{%s}", "Answer: %s", "#### %s", "<answer>%s</answer>", "= %s", "%s"))
        return frame.replace("%s", text)

    def altered(self, right: str) -> str:
        """A right response with something cut, doubled, replaced or put in."""
        text = right
        for _ in range(self.rng.randint(0, 3)):
            at, end = sorted(self.rng.randint(0, len(text)) for _ in range(2))
            middle = self.rng.choice(("", text[at:end] * 2, self.piece(), self.noise(), text[at:end][::-1]))
            text = text[:at] + middle + text[self.rng.choice((at, end)) :]
        return text

    def noise(self) -> str:
        """Characters of any kind."""
        draw = self.rng.choice((lambda: self.rng.choice(string.printable), lambda: chr(self.rng.randrange(0x110000))))
        return "".join(draw() for _ in range(self.rng.randint(1, 12)))

    def long(self) -> str:
        """Megabytes of one fragment."""
        piece = self.piece() or " "
        return (piece * (2_000_000 // len(piece)))[:2_000_000]

    def response(self, right: str) -> str:
        """One response."""
        draw = self.rng.random()
        if draw < 0.0005:
            return self.long()
        return self.soup() if draw < 0.5 else self.altered(right) if draw < 0.95 else self.noise()


def embedded(name: str) -> tuple[list[Problem], list[str], list[str], Judge]:
    """(problems, a right or wrong demonstration of each, words, judge) of an embedded task."""
    task, rng = make_task(name), np.random.default_rng(0)
    problems = task.train_problems(0, PROBLEMS, 0)

    def judge(asked: Sequence[Problem], responses: Sequence[str]) -> list[Any]:
        for problem, response in zip(asked, responses, strict=True):
            task.first_error(problem, response.split()[:4096])  # samples.jsonl and the studies ask it too
        return task.judge(asked, responses)

    return problems, [" ".join(task.demonstrate(p, rng)) for p in problems], task.words, judge


def mathematics() -> tuple[list[Problem], list[str], list[str], Judge]:
    """The same of the mathematics tasks: the cases of the tests."""
    from minivapo.tasks.verifier import Verifier

    verifier = Verifier(workers=1)
    cases = [case for rows in CASES.values() for case in rows]
    problems = [Problem("", gold, str(i)) for i, (_, gold, _) in enumerate(cases)]

    def judge(asked: Sequence[Problem], responses: Sequence[str]) -> list[Any]:
        return verifier.grade_many(responses, [p.answer for p in asked])

    return problems, [response for response, *_ in cases], [gold for _, gold, _ in cases], judge


def gym(name: str) -> tuple[list[Problem], list[str], list[str], Judge]:
    """The same of a generator of reasoning-gym."""
    task = make_task(f"reasoning-gym:{name}")
    problems = task.train_problems(0, PROBLEMS, 0)
    answers = [f"<answer>{p.answer}</answer>" for p in problems]
    words = [word for p in problems for word in (*p.prompt.split()[-12:], p.answer)]
    return problems, answers, words, task.judge


def verifier(name: str) -> tuple[list[Problem], list[str], list[str], Judge]:
    """What is asked, right answers, words and judge of a verifier."""
    if name == "mathematics":
        return mathematics()
    return gym(name.partition(":")[2]) if ":" in name else embedded(name)


def memory() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def fuzz(name: str, chunk: int, count: int, work: Path) -> Row:
    """So many responses, one at a time."""
    canary = work / "canary"
    canary.unlink(missing_ok=True)
    problems, right, words, judge = verifier(name)
    texts = Texts(f"{name}-{chunk}", words, canary)
    judge(problems[:1], right[:1])  # workers start
    before, begun = memory(), time.perf_counter()
    verdicts: Counter[str] = Counter()
    slowest, raised = 0.0, ""
    for _ in range(count):
        at = texts.rng.randrange(len(problems))
        response = texts.response(right[at])
        start = time.perf_counter()
        try:
            [verdict] = judge([problems[at]], [response])
        except Exception as error:  # a finding
            raised = raised or f"{type(error).__name__}: {error} on {response[:200]!r}"
            verdicts["raised"] += 1
        else:
            verdicts[str(verdict)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    return {
        "verifier": name, "chunk": chunk, "responses": count, "right": verdicts["True"], "wrong": verdicts["False"],
        "no_verdict": verdicts["None"], "raised": verdicts["raised"], "first_raised": raised,
        "slowest_seconds": round(slowest, 3), "seconds": round(time.perf_counter() - begun, 1),
        "memory_growth_mib": round(memory() - before, 1), "executed": canary.exists(),
    }  # fmt: skip


def run(done: list[Row], most: int, work: Path) -> Iterator[list[Row]]:
    """Chunks of all verifiers in turn."""
    work.mkdir(parents=True, exist_ok=True)
    have = {(row["verifier"], int(row["chunk"])) for row in done}
    todo = [(name, chunk) for chunk in range(WANTED // CHUNK) for name in VERIFIERS if (name, chunk) not in have]
    for name, chunk in todo[:most]:
        yield [fuzz(name, chunk, CHUNK, work)]
