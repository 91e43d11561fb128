"""Checkpoints: replaced atomically, with a manifest of SHA-256 sums; a stop leaves the old one or the new one whole.

checkpoint/      the newest: a run goes on from it
checkpoint-7/    with `keep` above 1: earlier ones, by the step they were saved after
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minivapo.files import read_object
from minivapo.interfaces import Engine, UserError, World

CHECKPOINT = "checkpoint"

SAVING_SHARE = 0.05
"""Largest share of a run's time that goes into saving, where nobody says how often to save."""


class SaveTimer:
    """Decides when a checkpoint is due; every rank gets rank 0's answer.

    Args:
        every: rollouts between checkpoints, those of reward-model training and value-pretraining included. 0: the
            first rollout is saved, and from then on as soon as the work since the last save has taken so long that
            another save, if it takes as long as the last one, stays within `SAVING_SHARE` of both. So a kill loses
            at most a rollout more than 19 times the duration of a save.
        world: the ranks.
        now: a clock, in seconds, that never jumps.
    """

    def __init__(self, every: int, world: World, now: Callable[[], float] = time.monotonic) -> None:
        self.every, self.world, self.now = every, world, now
        self.rollouts = 0
        self.since, self.cost = now(), 0.0

    def due(self, rollouts: int = 1) -> bool:
        """Whether to save now, after so many more rollouts."""
        self.rollouts += rollouts
        if not self.rollouts:
            return False
        if self.every:
            return self.rollouts >= self.every
        due = self.now() - self.since >= self.cost * (1 / SAVING_SHARE - 1)
        # The ranks' clocks differ, and all of them must take part in a save: rank 0 decides.
        return bool(self.world.max(torch.tensor(float(due and self.world.rank == 0))))

    def saved(self, begun: float) -> None:
        """A save that began at `begun`, by the same clock, has ended."""
        self.rollouts, self.since = 0, self.now()
        self.cost = self.since - begun


def save_checkpoint(engine: Engine, run: Path, keep: int = 1) -> None:
    """Replaces the run's checkpoint by the engine's state; a stop at any moment leaves the old or the new one.

    Every rank calls it; rank 0 moves folders. All ranks must see the same file system.

    Args:
        engine: saves itself.
        run: the run folder.
        keep: checkpoints to keep, the new one included.
    """
    fresh, current, old = run / "checkpoint.new", run / CHECKPOINT, run / "checkpoint.old"
    if engine.world.rank == 0:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    barrier(engine)
    try:
        engine.save(fresh)
    except Exception as error:  # safetensors and tokenizers raise their own classes, with the system's error inside
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError) or "os error" in str(error):
            text = f"cannot save to {run} ({' '.join(str(error).split())}). The last checkpoint is intact: "
            raise UserError(text + f"make room, then resume with --resume {run}.") from error
        raise
    barrier(engine)
    if engine.world.rank == 0:
        (fresh / "manifest.json").write_text(json.dumps(checksums(fresh, collect_sums(fresh)), indent=1))
        for path in (*fresh.rglob("*"), fresh):
            sync_to_disk(path)
        if current.exists():
            retire(run, keep)  # of a save that was stopped at its very end
            current.rename(old)
        fresh.rename(current)
        retire(run, keep)
    barrier(engine)


def retire(run: Path, keep: int) -> None:
    """Keeps the checkpoint that was replaced under its step, or deletes it; then the oldest beyond `keep`."""
    old = run / "checkpoint.old"
    if old.exists() and keep > 1:
        target = run / f"{CHECKPOINT}-{saved_step(old)}"
        shutil.rmtree(target, ignore_errors=True)  # of the same step: several saves fall into step 0
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    kept = kept_checkpoints(run)
    for step in sorted(kept)[: max(0, len(kept) - (keep - 1))]:
        shutil.rmtree(kept[step], ignore_errors=True)


def kept_checkpoints(run: Path) -> dict[int, Path]:
    """Step -> folder of the checkpoints that were kept beside the newest."""
    found = {path.name.removeprefix(f"{CHECKPOINT}-"): path for path in run.glob(f"{CHECKPOINT}-*")}
    return {int(step): path for step, path in found.items() if step.isdecimal()}


def saved_step(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(read_object(folder / "progress.json")["step"])


def find_checkpoint(run: Path) -> Path:
    """The checkpoint to resume from, its files compared with their manifest.

    Raises:
        UserError: there is none, or a file is missing or altered.
    """
    folder = checkpoint_folder(run)
    verify_checkpoint(folder)
    return folder


def has_checkpoint(run: Path) -> bool:
    """Whether anything of a run was saved."""
    return any((run / name).exists() for name in (CHECKPOINT, "checkpoint.old"))


def checkpoint_folder(run: Path) -> Path:
    """Where a run's checkpoint is.

    Raises:
        UserError: there is none.
    """
    folder = run / CHECKPOINT
    if not folder.exists() and (run / "checkpoint.old").exists():
        folder = run / "checkpoint.old"  # stopped between the two renames
    if not folder.exists():
        raise UserError(f"{run} has no checkpoint: nothing of it was saved yet, or the folder was removed.")
    return folder


def verify_checkpoint(folder: Path, world: World | None = None) -> None:
    """Compares a checkpoint's files with its manifest.

    Args:
        folder: the checkpoint.
        world: ranks that share the work; every one of them calls.

    Raises:
        UserError: a file is missing or altered.
    """
    try:
        expected = read_object(folder / "manifest.json")
    except (OSError, UserError) as error:
        text = f"{folder} has no readable manifest.json: it is not a whole checkpoint; nothing was changed."
        raise UserError(text) from error
    world = world or World()
    names = sorted({*expected, *file_names(folder)}, key=lambda name: (-file_size(folder / name), name))
    mine = [name if i % world.size == world.rank else "" for i, name in enumerate(names)]
    differs = [float(bool(name) and sha256(folder / name) != expected.get(name)) for name in mine]
    found = world.sum(torch.tensor(differs)).tolist()
    wrong = sorted(name for name, other in zip(names, found, strict=True) if other)
    if wrong:
        raise UserError(
            f"{folder} was altered or half-written ({', '.join(wrong[:3])} differ from manifest.json); "
            "restore these files, or start a new run. Nothing was changed."
        )


def checksums(folder: Path, known: dict[str, str]) -> dict[str, str | None]:
    """SHA-256 of every file below a folder but its manifest, by relative path; `known` ones are not read again."""
    return {name: known.get(name) or sha256(folder / name) for name in file_names(folder)}


def collect_sums(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path, as it stands in NAME.sha256 beside files whose writer left it there; takes these away.

    On a cluster each rank knows the sum of what it wrote: nobody has to read it all again.
    """
    found = {}
    for path in list(folder.rglob("*.sha256")):
        found[str(path.with_suffix("").relative_to(folder))] = path.read_text().split()[0]
        path.unlink()
    return found


def file_names(folder: Path) -> list[str]:
    """Relative paths of the files below a folder but its manifest, sorted."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return sorted(str(p.relative_to(folder)) for p in files)


def file_size(path: Path) -> int:
    """Bytes; 0 if there is no such file."""
    return path.stat().st_size if path.is_file() else 0


def sha256(path: Path) -> str | None:
    """SHA-256 of a file in hexadecimal; None if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:  # in chunks: a checkpoint of 32B does not fit in memory
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_to_disk(path: Path) -> None:
    """Flushes a file or folder, so that a rename after it is not seen before it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def barrier(engine: Engine) -> None:
    """Waits for all ranks."""
    engine.world.sum(torch.zeros(1))
