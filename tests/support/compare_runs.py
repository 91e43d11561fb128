"""What of a run folder must not depend on how often the run was stopped."""

import json
from pathlib import Path
from typing import Any

from minivapo.runs.checkpoint import find_checkpoint
from minivapo.runs.folder import read_metrics


def without_time(metrics: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics, or all of it that is no duration."""
    return {k: v for k, v in metrics.items() if not k.startswith("time/")}


def numbers(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run but for times."""
    return [without_time(line) for line in read_metrics(run)]


def content(run: Path) -> tuple[list[dict[str, Any]], str, dict[str, str]]:
    """Metrics without times, responses, and the checksum of every file of the checkpoint, weights and optimizers."""
    manifest = json.loads((find_checkpoint(run) / "manifest.json").read_text())
    responses = "".join((run / name).read_text() for name in ("samples.jsonl", "held_out.jsonl"))
    return numbers(run), responses, manifest
