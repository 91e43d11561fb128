"""What a run needs before anybody pays for it: the memory of each GPU by part and phase, and the time.

    python -m scaled.plan scaled/configs/qwen2.5-32b-64gpu.yaml
    python -m scaled.plan scaled/configs/qwen2.5-7b-8gpu.yaml --gpu a100-80 --token-budget 8192

The formulas are in `scaled.planning.memory` and `scaled.planning.time`; `benchmarks/plan_check.py` compares them with
measurements.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from minivapo.errors import UserError
from minivapo.options.parse import parse, read_words
from minivapo.show.text import share
from scaled.config import Job, check_task, preset_job
from scaled.planning.advice import ERRORS, Plan, plan
from scaled.planning.hardware import gib
from scaled.planning.memory import checkpoint_bytes
from scaled.planning.setup import Assumptions
from scaled.planning.time import save_seconds

PROG = "python -m scaled.plan"


def duration(seconds: float) -> str:
    """Seconds in words: 41 s, 12 min, 3.4 h, 6.1 days."""
    for unit, size, below in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < below:
            return f"{seconds / size:.{0 if unit == 's' and seconds >= 10 else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def memory_rows(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the memory table: parts down, phases across, GiB."""
    keys = list(dict.fromkeys(key for phase in plan.phases for key in phase.parts))
    order = ["actor", "critic", "reference", "vllm", "gpu"]
    keys.sort(key=lambda key: order.index(key[0]))
    rows = []
    for owner, part in keys:
        cells = [phase.parts.get((owner, part), 0.0) for phase in plan.phases]
        rows.append([owner, part, *(gib(x) if x else "" for x in cells)])
    rows.append(["", "total", *(gib(phase.total) for phase in plan.phases)])
    return ["", "GiB on each GPU", *(phase.name for phase in plan.phases)], rows


def time_rows(plan: Plan) -> list[list[str]]:
    """Rows of the time table: phase, seconds, share of a step; then the run."""
    total = sum(plan.step.values())
    rows = [[name, duration(x), share(x / total)] for name, x in plan.step.items()]
    rows.append(["one step", duration(total), share(1.0)])
    run = sum(plan.run.values())
    rows += [[f"run: {name}", duration(x), share(x / run)] for name, x in plan.run.items()]
    hours = run / 3600 * plan.setup.job.settings.ranks
    rows.append(["whole run", duration(run), f"{hours:,.0f} GPU-hours"])
    return rows


def headline(plan: Plan) -> str:
    """The run in one paragraph."""
    setup, s, c = plan.setup, plan.setup.job.settings, plan.setup.job.config
    critic = f", critic {setup.critic.parameters / 1e9:.2f} B weights" if setup.critic else ", no critic"
    shared = f", rows shared by {s.sequence_parallel} GPUs" if s.sequence_parallel > 1 else ""
    return (
        f"{setup.job.model or setup.actor.name} ({setup.job.preset}): actor {setup.actor.parameters / 1e9:.2f} B "
        f"weights{critic}; "
        f"{s.ranks} × {setup.gpu.name}, ZeRO-{s.zero_stage}, {s.dtype}"
        f"{', optimizer in CPU memory' if s.offload_optimizer else ''}, "
        f"{'activation checkpointing, ' if s.activation_checkpointing else ''}micro-batches of at most "
        f"{setup.micro_tokens:,} tokens{shared}, attention {setup.attention}; vLLM on {s.tensor_parallel} GPU(s) each, "
        f"{plan.sampling.slots} "
        f"responses at once ({share(plan.sampling.idle)} of their slots idle behind the longest); {c.batch_size:,} "
        f"responses of at most {c.max_new_tokens:,} tokens "
        f"(mean {setup.assume.response_share * c.max_new_tokens:,.0f} assumed) per step."
    )


def verdict(plan: Plan) -> list[str]:
    """Fits or not, why, and what to change."""
    peak = plan.peak
    room = plan.setup.gpu.memory - peak.total
    saved = f"a checkpoint: {gib(checkpoint_bytes(plan.setup))} GiB, {duration(save_seconds(plan.setup))}"
    host = f"CPU memory: {gib(plan.host)} GiB per machine; {saved}"
    if plan.fits:
        return [
            f"fits: {gib(peak.total)} of {gib(plan.setup.gpu.memory)} GiB at peak ({peak.name}), "
            f"{gib(room)} GiB to spare. {host}."
        ]
    return ["does not fit.", *(f"- {r}" for r in plan.reasons), "change:", *(f"- {x}" for x in plan.suggestions)]


def checked() -> str:
    """One line: how far the plan was from measurement."""
    found = ", ".join(f"{name} {low:+d} to {high:+d} %" for name, (low, high) in ERRORS.items())
    return f"error against small real engines on CPUs (docs/plan-32b.md): {found}; seconds were never measured."


def show(plan: Plan) -> None:
    """Prints the plan with rich."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(headline(plan), highlight=False)
    header, rows = memory_rows(plan)
    table = Table(title=f"Memory, GiB on each GPU of {gib(plan.setup.gpu.memory)}")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i > 1 else "left")
    for i, row in enumerate(rows):
        table.add_row(*row, end_section=i + 2 >= len(rows), style="bold" if i + 1 == len(rows) else "")
    console.print(table)
    table = Table("phase", "time", "share", title="Time")
    for row in time_rows(plan):
        table.add_row(*row)
    console.print(table)
    console.print("\n".join(verdict(plan)), highlight=False, style="green" if plan.fits else "red")
    console.print(checked(), highlight=False)


@dataclass(frozen=True)
class Arguments:
    """Plan a scaled run: python -m scaled.plan FILE. The flags of scaled.train overrule the file here as there."""

    gpu: str = "h100-80"
    """Kind of GPU: a100-80, h100-80, h200-141, rtx4080-16 or rtx4090-24."""
    format: Literal["table", "json", "markdown"] = "table"
    """How to print."""
    assume: tyro.conf.OmitArgPrefixes[Assumptions] = dataclasses.field(default_factory=Assumptions)
    job: tyro.conf.OmitArgPrefixes[Job] = dataclasses.field(default_factory=Job)


def markdown(plan: Plan) -> str:
    """The plan as Markdown tables, for the documentation."""
    header, rows = memory_rows(plan)
    lines = [headline(plan), "", "| " + " | ".join(header) + " |", "|---" * 2 + "|--:" * (len(header) - 2) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "| phase | time | share |", "|---|--:|--:|"]
    lines += ["| " + " | ".join(row) + " |" for row in time_rows(plan)]
    return "\n".join([*lines, "", *verdict(plan), "", checked()])


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m scaled.plan CONFIG`: 0 if it fits, 1 if not, 2 if the question is wrong."""
    try:
        words = read_words(Arguments, sys.argv[1:] if argv is None else argv)
        args = parse(Arguments, words, PROG, Arguments(job=preset_job(words)))
        if args.job.file is None:
            raise UserError(f"name a config file: {PROG} scaled/configs/qwen2.5-7b-8gpu.yaml")
        result = plan(check_task(args.job), args.gpu, args.assume)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.format == "json":
        print(json.dumps(result.to_dict(), indent=1))
    elif args.format == "markdown":
        print(markdown(result))
    else:
        show(result)
    return 0 if result.fits else 1
