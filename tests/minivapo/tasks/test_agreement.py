"""Our verifier beside math-verify alone, on the table of cases and on the gold answers of GSM8K in many spellings.

`gsm8k_golds.txt` holds what follows `####` in openai/gsm8k, train then test (MIT License, © 2021 OpenAI).
"""

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from grade_cases import ROWS
from math_verify import parse, verify

from minivapo.tasks.verifier import Verifier

pytestmark = pytest.mark.once

GOLDS = (Path(__file__).parents[2] / "support/gsm8k_golds.txt").read_text().split("\n")[:-1]
SPELLINGS = [
    r"The total is \boxed{X}.", r"\boxed{X\text{ dollars}}", "#### X", "Answer: X", "Answer: **X**.", "**Answer:** $X$",
    r"So it is \boxed{\text{Answer: } X}", "The answer is X.", "Answer: X eggs", r"<think>\boxed{12}</think>Answer: X",
    r"\boxed{X.00}", r"$\boxed{X}$ because nothing is left.", r"\boxed{\$X}", "Answer: X, since nothing is left.",
]  # fmt: skip


def math_verify_alone(responses, golds):
    """The library's own recipe: parse both, then verify; two seconds for each, since towers of powers have no end."""
    return [
        verify(parse(f"${gold}$", parsing_timeout=2), parse(response, parsing_timeout=2), timeout_seconds=2)
        for response, gold in zip(responses, golds, strict=True)
    ]


def errors(rows):
    """How many of (response, gold, verdict) each of the two gets wrong."""
    responses, golds, truth = zip(*rows, strict=True)
    with Verifier(time_limit=20) as verifier:
        ours = verifier.grade_many(responses, golds)
    # In a process without hypothesis: an alarm of the library that rings inside hypothesis' hook of the garbage
    # collector is lost there.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        alone = process.submit(math_verify_alone, responses, golds).result()
    return tuple(
        sum((got is True) is not right for got, right in zip(verdicts, truth, strict=True))
        for verdicts in (ours, alone)
    )


def spelled(golds):
    """Each gold in a spelling of its own, and its neighbour in another."""
    rng = random.Random(0)
    for gold in golds:
        number = int(gold.replace(",", "")) if "." not in gold else None
        yield rng.choice(SPELLINGS).replace("X", gold), gold, True
        if number is not None:
            yield rng.choice(SPELLINGS).replace("X", f"{number + rng.choice([-1, 1, 10])}"), gold, False


def test_on_the_table_of_cases():
    ours, alone = errors([row[1:] for row in ROWS])
    assert ours == 0 < alone


def test_on_golds_of_gsm8k():
    rows = list(spelled(GOLDS[::4]))
    ours, alone = errors(rows)
    assert ours == 0 < alone, f"{len(rows):,} answers: {ours} errors, math-verify alone {alone}"
