"""A real language model learns on a laptop: docs/real-protocol.md, carried out.

    pip install -c constraints.txt -e '.[real]'
    python benchmarks/real.py                 # all 24 runs, hours on one core; goes on where it was stopped
    python benchmarks/real.py --most 1        # the next run alone
    python benchmarks/real.py --presets vapo grpo --out A.csv     # these arms, on a core of their own
    python benchmarks/real.py --negatives     # what the model says before training where the answer is below zero

Each run adds its rows to docs/results/real/runs.csv, or to --out, when it ends.
"""

from __future__ import annotations

import argparse
import csv
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minivapo.commands.train import options_of, read
from minivapo.interfaces import derive_seed
from minivapo.local import LocalEngine
from minivapo.responses import Draw, Response, held_out_problems, respond
from minivapo.runs.evaluation import pass_at_k
from minivapo.runs.folder import git_commit, versions
from minivapo.show.text import line
from minivapo.tasks import load_task
from minivapo.vapo import train

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs/results/real/runs.csv"
SEEDS, RATES, PRESETS = (1000, 1001, 1002), (3e-6, 1e-5), ("vapo", "grpo", "dapo", "ppo")
PROBLEMS, MARKS, MANY = 256, (0, 8, 16, 24, 32), 8
DRAWS = {"greedy": (0.0, 1.0), "top-p 1": (1.0, 1.0), "top-p 0.7": (1.0, 0.7)}
"""How responses are drawn -> temperature and top-p."""

Row = dict[str, Any]


def evaluate(task: Any, engine: LocalEngine, how: str, samples: int = 1) -> list[Response]:
    """Responses to the held-out problems; the same random numbers for every policy."""
    temperature, top_p = DRAWS[how]
    config = engine.config
    draw = Draw(
        n=samples, seed=derive_seed("real", how, samples), version=engine.actor.version,
        max_prompt_tokens=config.max_prompt_tokens, timeout=config.verifier_timeout,
        temperature=temperature, top_p=top_p,
    )  # fmt: skip
    return respond(task, held_out_problems(task, PROBLEMS), engine.tokenizer, engine.sampler, draw)


def scores(task: Any, engine: LocalEngine, step: int) -> Iterator[Row]:
    """The rows of one mark: accuracy in every way of drawing, apart for negative answers, and pass@8 at the ends."""
    for how in DRAWS:
        found = evaluate(task, engine, how)
        negative = [r for r in found if r.problem.answer.startswith("-")]
        yield {
            "how": how,
            "problems": len(found),
            "accuracy": share(r.verdict is True for r in found),
            "negative": len(negative),
            "negative_accuracy": share(r.verdict is True for r in negative),
            "minus": share(r.text.strip().startswith("-") for r in negative),
        }
    if step in (MARKS[0], MARKS[-1]):
        found = evaluate(task, engine, "top-p 1", MANY)
        groups = [found[i : i + MANY] for i in range(0, len(found), MANY)]
        yield {
            "how": f"pass@{MANY}",
            "problems": len(groups),
            "accuracy": sum(pass_at_k(MANY, sum(r.verdict is True for r in g), MANY) for g in groups) / len(groups),
        }


def share(verdicts: Any) -> float:
    """Of those that are true."""
    found = list(verdicts)
    return sum(found) / len(found) if found else float("nan")


def shipped(*words: str) -> tuple[argparse.Namespace, Any, str]:
    """The shipped configuration, changed by these flags, with its task and the model's folder."""
    args = read([str(ROOT / "configs/laptop-real.yaml"), "--eval-problems", "1", "--eval-every", "1000", *words])
    return args, *load_task(args.task, options_of(args), args.model, args.config.max_prompt_tokens)


def start(*words: str) -> tuple[Any, LocalEngine]:
    """Task and engine of the shipped configuration, changed by these flags; its evaluations are the protocol's."""
    args, task, model = shipped(*words)
    return task, LocalEngine(model, args.config, critic=args.critic, stop=task.stop, sample_batch=args.sample_batch)


def negatives() -> dict[str, int]:
    """Responses at top-p 1 before training to problems with an answer below zero, and to as many others: counts."""
    task, engine = start("--preset", "grpo")
    engine.sampler.sync(engine.actor)
    problems = held_out_problems(task, PROBLEMS)
    below = [p for p in problems if p.answer.startswith("-")]
    others = [p for p in problems if not p.answer.startswith("-")][: len(below)]
    config = engine.config
    draw = Draw(
        n=2 * MANY, seed=derive_seed("real", "negatives"), version=engine.actor.version,
        max_prompt_tokens=config.max_prompt_tokens, timeout=config.verifier_timeout,
    )  # fmt: skip
    found, rest = (respond(task, some, engine.tokenizer, engine.sampler, draw) for some in (below, others))
    return {
        "responses": len(found),
        "minus": sum(r.text.strip().startswith("-") for r in found),
        "right": sum(r.verdict is True for r in found),
        "right but for the sign": sum(r.text.strip() == r.problem.answer[1:] for r in found),
        "right, others": sum(r.verdict is True for r in rest),
    }


def run(preset: str, rate: float, seed: int, before_training: list[Row]) -> list[Row]:
    """Trains one arm and measures it at every mark; `before_training`, where it is known, is not measured again."""
    task, engine = start("--preset", preset, "--actor-lr", str(rate), "--seed", str(seed))
    about = {"preset": preset, "rate": rate, "seed": seed}
    rows: list[Row] = []
    begun, measuring = time.process_time(), 0.0
    for metrics in train(engine.config, task, engine):
        print(f"{preset} {rate:g} {seed} | {line(metrics)}", flush=True)
        step = int(metrics["step"])
        if step in MARKS and "pretrain/rollout" not in metrics:
            before = time.process_time()
            spent = round(before - begun - measuring, 1)
            known = {"step": step, "samples": engine.progress.samples, "train_cpu_seconds": spent}
            known |= {"entropy": metrics.get("policy/entropy", float("nan"))}
            known |= {"explained_variance": metrics.get("value/explained_variance", float("nan"))}
            # Before training all arms are the same model, asked with the same random numbers.
            rows += [about | known | row for row in (step == 0 and before_training) or scores(task, engine, step)]
            measuring += time.process_time() - before
    where = {"machine": platform.machine(), "torch": versions()["torch"], "commit": git_commit()}
    return [row | where for row in rows]


COLUMNS: tuple[str, ...] = (
    "preset", "rate", "seed", "step", "how", "problems", "accuracy", "negative", "negative_accuracy", "minus",
    "entropy", "explained_variance", "samples", "train_cpu_seconds", "machine", "torch", "commit",
)  # fmt: skip


MEASURED = ("how", "problems", "accuracy", "negative", "negative_accuracy", "minus")
"""Columns that `scores` fills."""


def kept(path: Path) -> list[dict[str, str]]:
    """The rows of a file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def arm_of(row: dict[str, str]) -> tuple[str, float, int]:
    """The run of a row."""
    return row["preset"], float(row["rate"]), int(row["seed"])


def measured_before(rows: list[dict[str, str]]) -> list[Row]:
    """The scores of the model before training, where a run has them; else none."""
    before = [row for row in rows if row["step"] == "0" and arm_of(row) == arm_of(rows[0])]
    return [{name: row[name] for name in MEASURED} for row in before]


def main() -> int:
    """Carries out what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=sys.maxsize, help="runs at most")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS, help="these arms alone")
    parser.add_argument("--out", type=Path, default=OUT, help="where the rows are and go")
    parser.add_argument("--negatives", action="store_true", help="count the answers below zero before training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    if args.negatives:
        with (OUT.parent / "negatives.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("what", "count"), *negatives().items()])
        return 0
    plan = [(preset, rate, seed) for seed in SEEDS for rate in RATES for preset in args.presets]
    done = {arm_of(row) for row in kept(args.out)}
    for arm in [arm for arm in plan if arm not in done][: args.most]:
        known = kept(args.out)
        rows = run(*arm, measured_before(known))
        with args.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, restval="")
            if not known:
                writer.writeheader()
            for row in rows:
                writer.writerow({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
