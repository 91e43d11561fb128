"""Where a run came from: its model and data are found again after a move, and known to be the same.

A run that goes on needs its data and, with `kl_coef`, the policy that it is held to; all else is in its checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivapo.interfaces import UserError
from minivapo.pretrained import PACKAGES, pretrained_folder
from minivapo.tasks import custom_name
from minivapo.vapo import Config

STATE = ("optimizer", "master", "learner")
"""How files of a checkpoint begin that decide training alone: they stand beside the weights."""


@dataclass(frozen=True)
class Origin:
    """What a run was started with, by names that hold here and now."""

    model: str
    """Transformers folder or hub name that the policy started from."""
    critic: str | None
    task: str
    config: Config
    """Its `critic_init` may name a folder too."""


def origin_record(info: dict[str, Any], config: Config, run: Path) -> dict[str, Any]:
    """What config.json keeps of a run's origin, besides the names that were given.

    `paths` holds every folder and file that they name, absolute and from the run folder; `reference` the hash of the
    weights that the policy is held to by `kl_coef`.
    """
    paths = {}
    for key, name in names(info, config).items():
        path = Path(name).expanduser()
        if name and path.exists():
            absolute = path.resolve()
            paths[key] = {"absolute": str(absolute), "relative": os.path.relpath(absolute, run.resolve())}
    record: dict[str, Any] = {"paths": paths}
    model = info.get("model")
    if config.kl_coef and model and Path(model).parent != run:  # what lies in the run folder is the run's own
        record["reference"] = fingerprint(model)[0]
    return record


def names(info: dict[str, Any], config: Config) -> dict[str, str]:
    """Option -> the folder, file or hub name given for it, or ""."""
    task = info.get("task") or ""
    kind, _, file = task.partition(":")
    own = custom_name(task)
    if own:
        file = own[0] if own[0].endswith(".py") else ""  # a module is found by its name
    return {
        "model": info.get("model") or "",
        "critic": info.get("critic") or "",
        "task": "" if kind == "reasoning-gym" else file,  # a generator is no file
        "critic_init": config.critic_init,
    }


def find_origin(info: dict[str, Any], config: Config, run: Path) -> Origin:
    """The origin of a run, wherever it and the working directory are now."""
    found = names(info, config)
    for key, place in info.get("paths", {}).items():
        candidates = (place["absolute"], str(run / place["relative"]))
        found[key] = next((path for path in candidates if Path(path).exists()), found[key])
    task, own = info["task"], custom_name(info["task"])
    if found["task"]:
        task = f"{found['task']}:{own[1]}" if own else f"{task.partition(':')[0]}:{found['task']}"
    config = dataclasses.replace(config, critic_init=found["critic_init"])
    return Origin(found["model"], found["critic"] or None, task, config)


def check_reference(info: dict[str, Any], origin: Origin, run: Path) -> None:
    """Refuses to go on with a run whose reference policy is not the one that it was started with.

    Raises:
        UserError: its weights are others, or gone.
    """
    expected = info.get("reference")
    if expected is None or not origin.config.kl_coef:
        return
    try:
        found = fingerprint(origin.model)[0]
    except UserError:
        found = "gone"
    if found != expected:
        state = "is gone" if found == "gone" else "has other weights now"
        raise UserError(
            f"{origin.model}, the policy to which kl_coef holds {run}, {state}: put back the folder that the run was "
            "started from. Nothing was changed."
        )


def fingerprint(model: str) -> tuple[str, str]:
    """(weights, files): the first 16 hexadecimal digits of SHA-256 over the weight files of a folder, and over all
    its other files; or a hub model's commit, which stands for both.

    Raises:
        UserError: there are no weights.
    """
    folder = pretrained_folder(model) if model in PACKAGES else Path(model)
    if not folder.is_dir():
        from minivapo.loading import explain_loading, transformers

        with explain_loading(model, "configuration"):
            commit = f"hub commit {transformers.AutoConfig.from_pretrained(model)._commit_hash}"
            return commit, commit
    mine = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith((*STATE, "."))]
    weights = [path for path in mine if path.suffix in (".safetensors", ".bin")]
    if not weights:
        raise UserError(f"{model} holds no weights (*.safetensors); give a transformers folder or a run folder.")
    return hash_files(weights), hash_files([path for path in mine if path not in weights])


def hash_files(paths: Sequence[Path]) -> str:
    """The first 16 hexadecimal digits of SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
