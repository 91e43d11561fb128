"""Whole tensors out of shards and back: weights on their way to vLLM, and a learner's files.

DeepSpeed spreads weights, master weights and Adam's moments over the ranks. The files hold whole tensors by name, as
those of `minivapo.local.LocalLearner.save`: any number of ranks, any ZeRO stage and the local engine read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minivapo.interfaces import UserError
from scaled.balance import assign
from scaled.faults import tick
from scaled.world import DistributedWorld

GATHER = 2**28
"""Elements gathered from ZeRO-3 shards at once (0.5 GiB in bf16), or one tensor where that is larger."""

SHARD = 2**32
"""Bytes of optimizer state that one rank writes before another rank helps."""

MOMENTS = ("exp_avg", "exp_avg_sq")


def whole_weights(model: Any, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Name and whole tensor of every parameter, gathered piecewise; all ranks must exhaust it together."""
    for bucket in buckets(list(model.named_parameters()), GATHER):
        tick(f"gathering {kind} weights")
        with gathered([p for _, p in bucket]):
            pieces = [(name, p.detach().clone()) for name, p in bucket]
        while pieces:
            yield pieces.pop(0)


def save_learner(model: Any, kind: str, version: int, master: bool, folder: Path, world: DistributedWorld) -> None:
    """Writes a transformers folder (safetensors) and the optimizer's state beside the weights. Collective.

    Every tensor has an owner, who alone puts it together and writes it; so large states are written by many ranks at
    once, to a file system that they share. Each leaves the SHA-256 of what it wrote in a file beside it.

    Args:
        model: the network, whose parameters DeepSpeed manages.
        kind: "actor" or "critic", for the watchdog.
        version: optimizer steps taken.
        master: also write the float32 master weights, to `master.safetensors`: the weights themselves are bfloat16.
        folder: made if it is not there.
        world: the ranks.
    """
    named = list(model.named_parameters())
    sizes = [math.prod(shape(p)) for _, p in named]
    writers = max(1, min(world.size, math.ceil(sum(sizes) * 12 / SHARD)))
    owner = assign([float(n) for n in sizes], writers)
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        describe(model, folder)
        (folder / "learner.json").write_text(json.dumps({"version": version}))
        if writers > 1:
            names = {name: shard_name("model", rank, writers) for (name, _), rank in zip(named, owner, strict=True)}
            size = {"total_size": sum(n * p.element_size() for n, (_, p) in zip(sizes, named, strict=True))}
            index = {"metadata": size, "weight_map": names}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    world.sum(torch.zeros(1))  # the folder exists before other ranks write into it
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "master": {}}
    for (name, p), rank in zip(named, owner, strict=True):
        tick(f"saving {kind}")
        weight = gather_weight(p, rank)
        moments = {key: gather_state(p, key, rank) for key in MOMENTS} if version else {}
        copy = gather_state(p, None, rank) if master else None
        if rank != world.rank:
            continue
        assert weight is not None
        parts["model"][name] = weight.cpu().contiguous()
        if version:
            parts["optimizer"][f"{name}|step"] = torch.tensor(float(version))
        parts["optimizer"] |= {f"{name}|{key}": full(x) for key, x in moments.items()}
        if copy is not None:
            parts["master"][name] = full(copy)
    if world.rank < writers:
        for part, tensors in parts.items():
            tick(f"writing {kind}")
            if tensors or part == "optimizer":
                write_tensors(tensors, folder / shard_name(part, world.rank, writers))


def shard_name(part: str, rank: int, writers: int) -> str:
    """The file for a writer's tensors; those of the weights are named as transformers finds them."""
    if writers == 1:
        return f"{part}.safetensors"
    return f"{part}-{rank + 1:05d}-of-{writers:05d}.safetensors"


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes tensors to the disk itself, and their file's SHA-256 beside it, as `sha256sum` writes it."""
    save_file(tensors, path, metadata={"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")


def describe(model: Any, folder: Path) -> None:
    """Writes what transformers needs to open a folder, but for the weights."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = next(model.parameters()).dtype
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def gather_weight(p: Any, owner: int) -> Tensor | None:
    """A whole parameter in its own dtype, on its owner; None on the other ranks. Collective under ZeRO-3."""
    if not hasattr(p, "ds_id"):
        return p.detach() if dist.get_rank() == owner else None
    return gather_parts(p.ds_tensor.detach(), p, owner)


def gather_state(p: Any, key: str | None, owner: int) -> Tensor | None:
    """A master weight (key None) or Adam moment, whole, on its owner; None on the other ranks. Collective."""
    if hasattr(p, "ds_id"):
        part = safe_get_local_fp32_param(p) if key is None else safe_get_local_optimizer_state(p, key)
        assert part is not None
        return gather_parts(part, p, owner)
    # ZeRO-2 cuts all parameters together: each rank has a stretch of this one, or nothing.
    mine = p._hp_mapping
    whole = torch.zeros(p.numel(), device=p.device)
    if mine is not None:
        at = mine.lp_fragment_address
        whole[at.start : at.start + at.numel] = mine.get_hp_fragment(key).to(p.device)
    dist.reduce(whole, dst=owner)
    return whole.view(p.shape) if dist.get_rank() == owner else None


def gather_parts(part: Tensor, p: Any, owner: int) -> Tensor | None:
    """The equal parts that ZeRO-3 cut a parameter into, joined on its owner."""
    if dist.get_world_size() == 1:
        return part.flatten()[: p.ds_numel].view(p.ds_shape)
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())] if dist.get_rank() == owner else None
    dist.gather(part.contiguous(), parts, dst=owner)
    return None if parts is None else torch.cat(parts)[: p.ds_numel].view(p.ds_shape)


def load_learner(model: Any, kind: str, optimizer: Any, folder: Path, world: DistributedWorld) -> int:
    """Takes back what `save_learner` or the local engine wrote, and returns the version.

    Every rank reads from the files what it holds, and no more.

    Args:
        model: the network, whose parameters DeepSpeed manages.
        kind: "actor" or "critic", for the watchdog.
        optimizer: DeepSpeed's optimizer.
        folder: where the files are.
        world: the ranks.

    Raises:
        UserError: the files are of another model.
    """
    weights = TensorFiles(sorted(folder.glob("model*.safetensors")))
    master = TensorFiles(sorted(folder.glob("master*.safetensors")))
    moments = TensorFiles(sorted(folder.glob("optimizer*.safetensors")))
    steps = 0
    for name, p in model.named_parameters():
        tick(f"loading {kind}")
        load_weight(p, weights, name, world.rank)
        precise = master if master.has(name) else weights
        set_state(p, None, lambda start, count, of=precise, name=name: of.read(name, start, count))
        for key in MOMENTS:
            entry = f"{name}|{key}"
            read = (lambda start, count, entry=entry: moments.read(entry, start, count)) if moments.has(entry) else None
            set_state(p, key, read)
        if moments.has(f"{name}|step"):
            steps = int(moments.whole(f"{name}|step"))
    set_steps(optimizer, steps)
    return json.loads((folder / "learner.json").read_text())["version"]


def load_weight(p: Any, weights: TensorFiles, name: str, rank: int) -> None:
    """Reads this rank's part of a parameter; all of it where the rank holds it whole."""
    weights.check(name, shape(p))
    if not hasattr(p, "ds_id"):
        p.data.copy_(weights.whole(name))
        return
    count = p.ds_tensor.numel()
    p.ds_tensor.data.copy_(weights.read(name, count * rank, count))
    if p.ds_status == ZeroParamStatus.AVAILABLE:  # a small one, which ZeRO-3 keeps whole beside its part
        p.data.copy_(weights.whole(name))


def forget_moments(model: Any, optimizer: Any) -> None:
    """Adam's state as before its first step."""
    for p in model.parameters():
        for key in MOMENTS:
            set_state(p, key, None)
    set_steps(optimizer, 0)


def set_steps(optimizer: Any, steps: int) -> None:
    """Sets Adam's step count, on which its bias correction depends."""
    for state in optimizer.optimizer.state.values():
        if "step" in state:
            state["step"] = torch.full_like(state["step"], float(steps))


def shape(p: Any) -> torch.Size:
    """The whole shape of a parameter, sharded or not."""
    return p.ds_shape if hasattr(p, "ds_shape") else p.shape


def full(x: Tensor | None) -> Tensor:
    """A gathered state on the CPU."""
    assert x is not None
    return x.detach().float().cpu().contiguous()


def set_state(p: Any, key: str | None, read: Callable[[int, int], Tensor] | None) -> None:
    """Fills this rank's part of a master weight (key None) or Adam moment.

    Args:
        p: the parameter.
        key: the moment's name.
        read: gives elements start … start + count − 1 of the whole, flat; without it they are 0.
    """
    if hasattr(p, "ds_id"):
        # DeepSpeed's own setter for whole tensors fails where the size is no multiple of the ranks.
        part = safe_get_local_fp32_param(p) if key is None else safe_get_local_optimizer_state(p, key)
        assert part is not None
        start, count = part.numel() * dist.get_rank(), part.numel()
        mine = torch.zeros(count) if read is None else read(start, count)
        if key is None:
            deepspeed.utils.safe_set_local_fp32_param(p, mine.to(part.device))
        else:
            deepspeed.utils.safe_set_local_optimizer_state(p, mine.to(part.device), key)
    elif p._hp_mapping is not None:
        part, at = p._hp_mapping.get_hp_fragment(key), p._hp_mapping.lp_fragment_address
        part.data.copy_(torch.zeros(at.numel) if read is None else read(at.start, at.numel))


def buckets(named: Sequence[tuple[str, Any]], limit: int) -> Iterator[list[tuple[str, Any]]]:
    """Consecutive parameters of at most `limit` elements together; a larger one alone."""
    bucket: list[tuple[str, Any]] = []
    size = 0
    for name, p in named:
        n = math.prod(shape(p))
        if bucket and size + n > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, p))
        size += n
    if bucket:
        yield bucket


def gathered(parameters: list[Any]) -> contextlib.AbstractContextManager[Any]:
    """Makes ZeRO-3 parameters whole for a while."""
    if not hasattr(parameters[0], "ds_id"):
        return torch.no_grad()
    return deepspeed.zero.GatheredParameters(parameters)


class TensorFiles:
    """Tensors of some safetensors files by name, and stretches of them, read by whoever asks."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.where: dict[str, Any] = {}
        for path in paths:
            file = safe_open(path, framework="pt")
            self.where |= dict.fromkeys(file.keys(), file)

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self.where

    def check(self, name: str, size: torch.Size) -> None:
        """Refuses files that do not hold this tensor in this shape.

        Raises:
            UserError: they are of another model.
        """
        found = tuple(self.where[name].get_slice(name).get_shape()) if name in self.where else None
        if found != tuple(size):
            what = "has no tensor" if found is None else f"has {list(found)} instead of {list(size)} elements for"
            raise UserError(f"the checkpoint {what} '{name}': it is of another model; resume the run it is from.")

    def whole(self, name: str) -> Tensor:
        """A tensor as it is."""
        return self.where[name].get_tensor(name)

    def read(self, name: str, start: int, count: int) -> Tensor:
        """Elements start … start + count − 1 of a tensor laid flat, in fp32 (bf16 is exact in it), then zeros.

        Only the rows that they lie in are read.
        """
        part = self.where[name].get_slice(name)
        size = part.get_shape()
        width = math.prod(size[1:])
        end = min(start + count, math.prod(size))
        found = torch.zeros(count)
        if start < end:
            first = start // width
            rows = part[first : -(-end // width)].flatten()
            found[: end - start] = rows[start - first * width : end - first * width].float()
        return found
