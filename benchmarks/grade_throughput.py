"""Answers graded per second: our verifier beside math-verify called directly, on made-up responses.

    python benchmarks/grade_throughput.py [--count 4000] [--workers 2] [--csv benchmarks/grade_throughput.csv]

Every response is distinct, ends in one stated answer (70 % right) and has 2,000 characters of reasoning
before it. Three mixes:

    ordinary  integers, decimals, fractions, money, units, percent, pairs: what GSM8K, DAPO-Math-17k and
              AIME ask for. Decided in the calling process.
    mixed     ordinary, with one answer in ten that needs algebra (roots, polynomials, intervals with roots).
    algebra   all need algebra, all different: nothing but the workers.

math-verify runs in this one process on the same texts, with its own time limits off. The workers of `ours`
are started before the clock; how long that took is the column start_seconds.
"""

import argparse
import csv
import logging
import os
import platform
import random
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

REASONING = "Let me think about what is asked and work through it carefully. We have 3 cases to consider. "


def ordinary(rng: random.Random) -> tuple[str, str, str]:
    """(right, wrong, gold) of an answer that arithmetic decides."""
    n, m = rng.randrange(1, 2000), rng.randrange(2, 40)
    return rng.choice(
        [
            (f"\\boxed{{{n}}}", f"\\boxed{{{n + 1}}}", str(n)),
            (f"\\boxed{{{n:,}}}", f"\\boxed{{{n + 3:,}}}", str(n)),
            (f"Answer: {n}", f"Answer: {n}0", str(n)),
            (f"#### {n}", f"#### {n + 7}", str(n)),
            (f"Answer: ${n}.50", f"Answer: ${n}.05", f"{n}.5"),
            (f"\\boxed{{\\frac{{{2 * n}}}{{{2 * m}}}}}", f"\\boxed{{\\frac{{{n}}}{{{m + 1}}}}}", f"{n}/{m}"),
            (f"\\boxed{{{n}\\text{{ cm}}}}", f"\\boxed{{{n + 1}\\text{{ cm}}}}", f"{n} cm"),
            (f"\\boxed{{{m}\\%}}", f"\\boxed{{{m + 1}\\%}}", f"{m}%"),
            (f"\\boxed{{({n}, {m})}}", f"\\boxed{{({m}, {n + 41})}}", f"({n},{m})"),
        ]
    )


def algebraic(rng: random.Random) -> tuple[str, str, str]:
    """(right, wrong, gold) of an answer that needs a computer algebra system."""
    a, b = rng.randrange(2, 200), rng.randrange(2, 200)
    return rng.choice(
        [
            (f"\\boxed{{{a}\\sqrt{{{4 * b}}}}}", f"\\boxed{{{a}\\sqrt{{{3 * b}}}}}", f"{2 * a}\\sqrt{{{b}}}"),
            (f"\\boxed{{x^2+{2 * a}x+{a * a}}}", f"\\boxed{{x^2+{2 * a}x+{b}}}", f"(x+{a})^2"),
            (f"\\boxed{{[\\sqrt{{{a * a}}},{b})}}", f"\\boxed{{[\\sqrt{{{a * a + 1}}},{b})}}", f"[{a},{b})"),
        ]
    )


def make(count: int, share: float, seed: int = 0) -> tuple[list[str], list[str], list[bool]]:
    """Responses, golds and verdicts, `share` of them algebraic."""
    rng = random.Random(seed)
    responses, golds, verdicts = [], [], []
    for i in range(count):
        right, wrong, gold = (algebraic if rng.random() < share else ordinary)(rng)
        verdict = rng.random() < 0.7
        reasoning = (f"Attempt {i}. " + REASONING * 25)[:2000]
        responses.append(f"{reasoning}\n{right if verdict else wrong}")
        golds.append(gold)
        verdicts.append(verdict)
    return responses, golds, verdicts


def math_verify_directly(responses: list[str], golds: list[str]) -> list[bool | None]:
    """The library's own recipe: parse both texts, then verify."""
    from math_verify import parse, verify

    return [
        verify(parse(f"${gold}$", parsing_timeout=None), parse(response, parsing_timeout=None), timeout_seconds=None)
        for response, gold in zip(responses, golds, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers graded per second.")
    parser.add_argument("--count", type=int, default=4000, help="answers of the ordinary mix; the others take a tenth")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="write the table there")
    options = parser.parse_args()
    import math_verify  # noqa: F401  (imported before the clock starts, for both)

    from minivapo.tasks.verifier import Verifier

    logging.disable(logging.WARNING)
    rows = []
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.workers} workers")
    for mix, share, count in (
        ("ordinary", 0.0, options.count),
        ("mixed", 0.1, options.count // 4),
        ("algebra", 1.0, options.count // 10),
    ):
        responses, golds, verdicts = make(count, share)
        with Verifier(options.workers) as verifier:
            start = time.perf_counter()
            verifier.grade_many([f"\\boxed{{x+{i}}}" for i in range(options.workers)], ["y"] * options.workers)
            started = round(time.perf_counter() - start, 1)
            for name, judge in (("ours", verifier.grade_many), ("math-verify", math_verify_directly)):
                row = measure(mix, name, judge, responses, golds, verdicts)
                row["start_seconds"] = started if name == "ours" else 0.0
                rows.append(row)
                print("  ".join(f"{key} {value}" for key, value in row.items()))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "math_verify", "python", "cores", "workers"])
            writer.writeheader()
            for row in rows:
                where = {"math_verify": version("math-verify"), "python": platform.python_version()}
                writer.writerow({**row, **where, "cores": os.cpu_count(), "workers": options.workers})


def measure(
    mix: str,
    name: str,
    judge: Callable[[list[str], list[str]], list[bool | None]],
    responses: list[str],
    golds: list[str],
    verdicts: list[bool],
) -> dict[str, object]:
    """Time one pass and count verdicts that differ from the ones the texts were made with."""
    start = time.perf_counter()
    got = judge(responses, golds)
    seconds = time.perf_counter() - start
    return {
        "mix": mix,
        "verifier": name,
        "answers": len(responses),
        "seconds": round(seconds, 2),
        "per_second": round(len(responses) / seconds),
        "wrong_verdicts": sum(g is not v for g, v in zip(got, verdicts, strict=True)),
        "no_verdict": sum(g is None for g in got),
    }


if __name__ == "__main__":
    main()
