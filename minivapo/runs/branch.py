"""A new run that starts from a state of another: the same weights, optimizers and progress, another configuration."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from minivapo.interfaces import UserError
from minivapo.runs.checkpoint import CHECKPOINT, checkpoint_folder, kept_checkpoints, saved_step, verify_checkpoint
from minivapo.runs.folder import LINES, cannot_write, refuse_a_run, write_record
from minivapo.runs.lock import run_lock
from minivapo.vapo import Config


def split_state(text: str) -> tuple[Path, int | None]:
    """(run folder, step) of RUN or RUN@STEP; without a step, the newest checkpoint is meant."""
    run, at, step = text.rpartition("@")
    return (Path(run), int(step)) if at and step.isdecimal() else (Path(text), None)


def find_state(source: Path, step: int | None) -> Path:
    """The checkpoint of a run after a step, or its newest.

    Raises:
        UserError: there is none.
    """
    newest = checkpoint_folder(source)
    if step is None:
        return newest
    known = {**kept_checkpoints(source), saved_step(newest): newest}
    if step not in known:
        steps = ", ".join(map(str, sorted(known)))
        raise UserError(f"{source} has no checkpoint of step {step}, only of {steps}; --keep N keeps more of them.")
    return known[step]


def branch(source: Path, step: int | None, run: Path, config: Config, info: dict[str, Any]) -> None:
    """Makes a run folder that goes on from a checkpoint of another run, as if it had been resumed there.

    Args:
        source: the other run's folder.
        step: of the checkpoint; None: the newest.
        run: the new folder.
        config, info: of the new run, see `minivapo.runs.folder.write_config`.

    Raises:
        UserError: there is no such checkpoint or it is damaged, or the folder holds a run already.
    """
    state = find_state(source, step)
    refuse_a_run(run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        with run_lock(run):
            refuse_a_run(run)
            for name in LINES:  # resuming cuts what came later
                if (source / name).exists():
                    shutil.copyfile(source / name, run / name)
            shutil.copytree(state, run / CHECKPOINT, copy_function=link)
            verify_checkpoint(run / CHECKPOINT)
            origin = {"run": str(source), "step": saved_step(run / CHECKPOINT)}
            write_record(run, config, {**info, "branched_from": origin})  # last: without it there is no run
    except OSError as error:
        raise cannot_write(run, error) from error


def link(source: str, target: str) -> None:
    """A second name for a file, which costs no room: no file of a checkpoint is ever written again. Else a copy."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
