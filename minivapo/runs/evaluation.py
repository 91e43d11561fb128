"""Evaluation as the paper reports it (§5.1): mean pass rate over k samples of each problem, and what goes with it.

One evaluation is one set of `Settings`, which name everything that decides its numbers: model and problems
by their hashes, lengths, temperature, top-p, seed, sampler. Finished problems are appended to a scratch file
under those settings, so that a stopped evaluation goes on and never mixes with another; the end is one JSON
file that two people can compare.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minivapo.files import read_object, read_objects, write_atomically
from minivapo.interfaces import Problem, UserError, derive_seed
from minivapo.responses import Draw, Response, respond
from minivapo.runs.folder import git_commit, versions
from minivapo.runs.lock import locked
from minivapo.runs.statistics import pass_rate_interval
from minivapo.show.text import share


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of an evaluation, besides the versions of the software."""

    model: str
    """Folder, run folder or hub name, as it was given."""
    weights: str
    """Hash of the weight files, or the hub's commit: see `fingerprint`."""
    files: str
    """Hash of all other files of the model's folder: configuration, tokenizer, templates."""
    task: str
    problems: int
    """Problems evaluated: the first of the task's held-out problems."""
    problems_hash: str
    """Hash of their prompts, exactly as the policy sees them, and answers."""
    samples: int
    """Responses for each problem."""
    temperature: float
    top_p: float
    max_new_tokens: int
    """Length limit of a response, in tokens."""
    max_prompt_tokens: int
    """Length limit of a prompt; longer ones were dropped by the task or are an error."""
    stop: tuple[str, ...]
    """Strings that end a response besides EOS."""
    stop_ids: tuple[int, ...]
    """Token ids that end a response, see `minivapo.loading.stop_ids`."""
    seed: int
    sampler: str
    """transformers or vllm: with one seed they draw different responses."""
    sample_batch: int
    """Responses sampled at once; random numbers depend on it."""
    dtype: Literal["float32", "bfloat16"]
    """Precision of the forward passes."""
    device: str
    """Kind of device: their random generators and roundings differ."""

    @property
    def key(self) -> str:
        """Eight hexadecimal digits that stand for all of these settings."""
        return hashlib.blake2b(json.dumps(self.record(), sort_keys=True).encode(), digest_size=4).hexdigest()

    def record(self) -> dict[str, Any]:
        """As JSON holds them."""
        return {**dataclasses.asdict(self), "stop": list(self.stop), "stop_ids": list(self.stop_ids)}


def hash_problems(problems: Sequence[Problem]) -> str:
    """The first 16 hexadecimal digits of SHA-256 over all prompts and answers in order."""
    text = json.dumps([[p.prompt, p.answer] for p in problems])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k responses is right: 1 − C(n − c, k)/C(n, k).

    Args:
        samples: n responses were drawn,
        correct: c of them right.
        k: at most n.

    Raises:
        ValueError: k or correct is impossible.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise ValueError(f"pass_at_k: {correct} right of {samples}, k = {k}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def summarise(settings: Settings, problems: Sequence[dict[str, Any]], left_out: int = 0) -> dict[str, Any]:
    """The result of an evaluation from the records of its problems, and the number of those that were left out.

    Choice: a response that the verifier failed on counts as not correct, and the share of such responses is
    stated beside the accuracy, with what the accuracy would be if all of them were right.
    """
    rates = [p["correct"] / p["samples"] for p in problems]
    n = sum(p["samples"] for p in problems)
    lengths = sorted(length for p in problems for length in p["lengths"])
    right = [x for p in problems for x, v in zip(p["lengths"], p["verdicts"], strict=True) if v]
    wrong = [x for p in problems for x, v in zip(p["lengths"], p["verdicts"], strict=True) if not v]
    ks = sorted({2**i for i in range(settings.samples.bit_length())} | {settings.samples})
    errors = sum(p["errors"] for p in problems) / n
    accuracy = sum(rates) / len(rates)
    return {
        "settings": settings.record(),
        "accuracy": accuracy,
        "interval": list(pass_rate_interval(rates)),
        "pass_at": {str(k): sum(pass_at_k(p["samples"], p["correct"], k) for p in problems) / len(rates) for k in ks},
        "verifier_errors": errors,
        "accuracy_if_errors_were_right": accuracy + errors,
        "truncated": sum(p["truncated"] for p in problems) / n,
        "length": {
            "mean": sum(lengths) / n,
            "median": lengths[n // 2],
            "p95": lengths[min(n - 1, int(0.95 * n))],
            "max": lengths[-1],
            "mean_correct": sum(right) / len(right) if right else None,
            "mean_wrong": sum(wrong) / len(wrong) if wrong else None,
        },
        "left_out": left_out,
        "problems": list(problems),
    }


# ---------------------------------------------------------------------------------------------------------
# The evaluation
# ---------------------------------------------------------------------------------------------------------


def evaluate_problems(
    task: Any, problems: Sequence[Problem], tokenizer: Any, sampler: Any, settings: Settings, path: Path, timeout: float
) -> Iterator[list[dict[str, Any]]]:
    """Samples and judges part after part; yields all finished records each time, what an earlier call did first.

    A part is as many problems as fit into one sampling batch; its seed depends on the number of its first
    problem, so a stopped and continued evaluation gives the same numbers as one that was never stopped.

    Args:
        task: judges.
        problems: all problems of these settings, in their order.
        tokenizer: the policy's.
        sampler: holds weights of version 0, see `minivapo.interfaces.Sampler`.
        settings: of the evaluation.
        path: scratch file of finished problems, under these settings.
        timeout: seconds that the verifier may take for one part.

    Raises:
        UserError: the file is of other settings or in use, a prompt is too long, or the verifier fails as a whole.
    """
    size = max(1, settings.sample_batch // settings.samples)
    with open_partial(path) as file:
        done = read_partial(settings, path)
        done = done[: len(done) // size * size] if len(done) < len(problems) else done
        rewrite(file, settings, done)
        if done:
            yield done
        for start in range(len(done), len(problems), size):
            part = problems[start : start + size]
            n = settings.samples
            draw = Draw(
                n=n, seed=derive_seed(settings.seed, "eval", start), version=0,
                max_prompt_tokens=settings.max_prompt_tokens, timeout=timeout,
                temperature=settings.temperature, top_p=settings.top_p,
            )  # fmt: skip
            responses = respond(task, part, tokenizer, sampler, draw)
            records = [problem_record(responses[i : i + n]) for i in range(0, len(responses), n)]
            file.write("".join(json.dumps(record) + "\n" for record in records))
            file.flush()
            done = [*done, *records]
            yield done


def problem_record(responses: Sequence[Response]) -> dict[str, Any]:
    """What is kept of all responses to one problem."""
    return {
        "id": responses[0].problem.id,
        "correct": sum(r.verdict is True for r in responses),
        "samples": len(responses),
        "errors": sum(r.verdict is None for r in responses),
        "truncated": sum(not r.sample.terminated for r in responses),
        "lengths": [len(r.sample.tokens) for r in responses],
        "verdicts": [r.verdict for r in responses],
    }


def scratch_file(out: Path, settings: Settings) -> Path:
    """Where finished problems wait for the others: a name that no other evaluation has, beside the result."""
    return out.with_name(f"{out.name}.{settings.key}.partial")


@contextlib.contextmanager
def open_partial(path: Path) -> Iterator[Any]:
    """The file of finished problems, for this process alone; it is made if it is not there.

    Raises:
        UserError: another process is writing it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.open("x").close()  # what is there is never cut before it was read
    busy = f"{path} is being written by another evaluation: wait for it, or give --out."
    with locked(path, busy), path.open("r+") as file:
        yield file


def read_partial(settings: Settings, path: Path) -> list[dict[str, Any]]:
    """Records of the problems that an earlier evaluation of these settings finished.

    Raises:
        UserError: the file holds results of other settings, or something else.
    """
    lines, cut = read_objects(path)
    if cut and not lines and not header(settings).encode().startswith(path.read_bytes()):
        raise UserError(f"{path} holds something else than an evaluation: choose another --out.")
    if lines and lines[0].get("settings") != settings.record():
        refuse_other(lines[0].get("settings"), settings, path)
    return lines[1:]


def header(settings: Settings) -> str:
    """The first line of a scratch file."""
    return json.dumps({"settings": settings.record()}) + "\n"


def rewrite(file: Any, settings: Settings, records: Sequence[dict[str, Any]]) -> None:
    """Leaves the settings and these records in the file: a part that was cut is dropped."""
    file.seek(0)
    file.truncate()
    file.write(header(settings) + "".join(json.dumps(line) + "\n" for line in records))
    file.flush()


def refuse_other(found: Any, settings: Settings, path: Path) -> None:
    """Refuses to mix two evaluations, naming what differs.

    Raises:
        UserError: always.
    """
    wanted = settings.record()
    found = found if isinstance(found, dict) else {}
    differ = [f"{k} {found.get(k)!r} there, {v!r} here" for k, v in wanted.items() if found.get(k) != v]
    raise UserError(f"{path} holds an evaluation with other settings ({'; '.join(differ[:3])}): choose another --out.")


def finished(out: Path, settings: Settings) -> dict[str, Any] | None:
    """The result that an earlier evaluation of these settings left, if it did.

    Raises:
        UserError: the file is not a result, or one of other settings.
    """
    if not out.exists():
        return None
    try:
        result = read_object(out)
        found = result["settings"]
    except (UserError, KeyError):
        raise UserError(f"{out} exists and is not a result of minivapo eval: choose another --out.") from None
    if found != settings.record():
        refuse_other(found, settings, out)
    return result


def write_result(out: Path, result: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Writes the JSON file at once or not at all."""
    tokens = sum(sum(p["lengths"]) for p in result["problems"])
    result = {
        **result,
        "commit": git_commit(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "tokens": tokens,
        "seconds": round(seconds, 1),
    }
    write_atomically(out, json.dumps(result, indent=1))
    return result


# ---------------------------------------------------------------------------------------------------------
# What a person sees
# ---------------------------------------------------------------------------------------------------------


def run_evaluation(
    task: Any, problems: Sequence[Problem], tokenizer: Any, sampler: Any, settings: Settings, out: Path, timeout: float
) -> dict[str, Any]:
    """Evaluates with live progress, writes the result and returns it; goes on with what is there.

    Raises:
        UserError: see `evaluate_problems`.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    begun, console = time.perf_counter(), Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    records: list[dict[str, Any]] = []
    told, scratch = 0, scratch_file(out, settings)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        row = bar.add_task("sampling", total=len(problems))
        for records in evaluate_problems(task, problems, tokenizer, sampler, settings, scratch, timeout):
            accuracy = sum(r["correct"] for r in records) / sum(r["samples"] for r in records)
            bar.update(row, completed=len(records), description=f"accuracy {share(accuracy)}")
            if not console.is_terminal and 10 * len(records) // len(problems) > told:  # a log: one line a tenth
                told = 10 * len(records) // len(problems)
                print(f"{len(records)} of {len(problems)} problems, accuracy {share(accuracy)}", flush=True)
    result = summarise(settings, records, getattr(task, "left_out", 0))
    result = write_result(out, result, time.perf_counter() - begun)
    scratch.unlink(missing_ok=True)
    return result


def show(result: dict[str, Any], rows: int = 40) -> None:
    """Prints the result: a table of the problems (at most so many rows), then the numbers to quote."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, settings = Console(), result["settings"]
    table = Table("problem", title=Text(f"{settings['model']} on {settings['task']}"))
    for name in ("correct", "rate", "mean length", "truncated", "verifier errors"):
        table.add_column(name, justify="right")
    for p in result["problems"][:rows]:
        n = p["samples"]
        label = p["id"] if len(p["id"]) <= 40 else p["id"][:39] + "…"
        numbers = (f"{p['correct']}/{n}", share(p["correct"] / n), f"{sum(p['lengths']) / n:.0f}")
        table.add_row(Text(label), *numbers, str(p["truncated"]), str(p["errors"]))
    console.print(table)
    more = len(result["problems"]) - rows
    if more > 0:
        console.print(f"… and {more} more problems in the file")
    low, high = result["interval"]
    length = result["length"]
    curve = ", ".join(f"pass@{k} {share(v)}" for k, v in result["pass_at"].items())
    drawn = f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}"
    left = result["left_out"]
    without = f" ({left} LEFT OUT: prompts of more than {settings['max_prompt_tokens']} tokens)" if left else ""
    lines = [
        f"accuracy {share(result['accuracy'])}, 95 % interval over problems {share(low)} to {share(high)}",
        f"  mean of {settings['samples']} {'samples' if settings['samples'] > 1 else 'sample'} on "
        f"{settings['problems']} problems{without}, {drawn if settings['temperature'] else 'greedy'}, at most "
        f"{settings['max_new_tokens']} tokens",
        curve,
        f"length mean {length['mean']:.1f}, median {length['median']}, 95 % below {length['p95']}, max {length['max']}",
        f"truncated {share(result['truncated'])}, verifier errors {share(result['verifier_errors'])}",
    ]
    if result["verifier_errors"]:
        lines.append(
            f"  the verifier failed on some: they count as wrong; were all of them right, the accuracy would be "
            f"{share(result['accuracy_if_errors_were_right'])}"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
