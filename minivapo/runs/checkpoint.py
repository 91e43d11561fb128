"""Checkpoints: replaced atomically, with a manifest of SHA-256 sums; a stop leaves the old one or the new one whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch

from minivapo.files import read_object
from minivapo.interfaces import Engine, UserError

CHECKPOINT = "checkpoint"


def save_checkpoint(engine: Engine, run: Path) -> None:
    """Replaces the run's checkpoint by the engine's state; a stop at any moment leaves the old or the new one.

    Every rank calls it; rank 0 moves folders. All ranks must see the same file system.
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
            text = f"cannot save to {run} ({' '.join(str(error).split())}): make room and go on with --resume {run}; "
            raise UserError(text + "nothing saved before was lost.") from error
        raise
    barrier(engine)
    if engine.world.rank == 0:
        (fresh / "manifest.json").write_text(json.dumps(checksums(fresh), indent=1))
        for path in (*fresh.rglob("*"), fresh):
            sync_to_disk(path)
        if current.exists():
            shutil.rmtree(old, ignore_errors=True)
            current.rename(old)
        fresh.rename(current)
        shutil.rmtree(old, ignore_errors=True)
    barrier(engine)


def find_checkpoint(run: Path) -> Path:
    """The checkpoint to resume from, its files compared with their manifest.

    Raises:
        UserError: there is none, or a file is missing or altered.
    """
    folder = checkpoint_folder(run)
    verify_checkpoint(folder)
    return folder


def checkpoint_folder(run: Path) -> Path:
    """Where a run's checkpoint is.

    Raises:
        UserError: there is none.
    """
    folder = run / CHECKPOINT
    if not folder.exists() and (run / "checkpoint.old").exists():
        folder = run / "checkpoint.old"  # stopped between the two renames
    if not folder.exists():
        raise UserError(f"{run} has no checkpoint to resume from: start the run anew in another folder.")
    return folder


def verify_checkpoint(folder: Path) -> None:
    """Compares a checkpoint's files with its manifest.

    Raises:
        UserError: a file is missing or altered.
    """
    try:
        expected = read_object(folder / "manifest.json")
    except (OSError, UserError) as error:
        text = f"{folder} has no readable manifest.json: it is not a whole checkpoint; nothing was changed."
        raise UserError(text) from error
    found = checksums(folder)
    wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if wrong:
        raise UserError(
            f"{folder} was altered or half-written ({', '.join(wrong[:3])} differ from manifest.json); "
            "restore these files, or start a new run. Nothing was changed."
        )


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but its manifest, by relative path."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"):
        with path.open("rb") as file:  # in chunks: a checkpoint of 32B does not fit in memory
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


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
