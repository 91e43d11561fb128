"""Whole tensors out of shards and back: weights on their way to vLLM, and a learner's files.

DeepSpeed spreads weights, master weights and Adam's moments over the ranks. The files hold whole tensors by name, as
those of `minivapo.local.LocalLearner.save`: any number of ranks, any ZeRO stage and the local engine read them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
)
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

    Large states are written by several ranks, to a file system that they share.

    Args:
        model: the network, whose parameters DeepSpeed manages.
        kind: "actor" or "critic", for the watchdog.
        version: optimizer steps taken.
        master: also write the float32 master weights, to `master.safetensors`: the weights themselves are bfloat16.
        folder: made if it is not there.
        world: the ranks.
    """
    state = {name: x.cpu() for name, x in whole_weights(model, kind) if world.rank == 0}
    if world.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, state_dict=state)
        (folder / "learner.json").write_text(json.dumps({"version": version}))
    del state
    world.sum(torch.zeros(1))  # the folder exists before other ranks write into it
    named = list(model.named_parameters())
    sizes = [math.prod(shape(p)) for _, p in named]
    writers = min(world.size, math.ceil(sum(sizes) * 12 / SHARD))
    owner = assign([float(n) for n in sizes], writers)
    moments: dict[str, Tensor] = {}
    masters: dict[str, Tensor] = {}
    for (name, p), rank in zip(named, owner, strict=True):
        tick(f"saving {kind}")
        parts = {key: full(safe_get_full_optimizer_state(p, key)) for key in MOMENTS}
        copy = full(safe_get_full_fp32_param(p)) if master else None
        if rank != world.rank:
            continue
        if version:
            moments[f"{name}|step"] = torch.tensor(float(version))
            moments |= {f"{name}|{key}": x.view(shape(p)) for key, x in parts.items()}
        if copy is not None:
            masters[name] = copy.view(shape(p))
    if world.rank < writers:
        suffix = "" if writers == 1 else f"-{world.rank:05d}"
        save_file(moments, folder / f"optimizer{suffix}.safetensors")
        if masters:
            save_file(masters, folder / f"master{suffix}.safetensors")


def load_learner(model: Any, kind: str, optimizer: Any, folder: Path, world: DistributedWorld) -> int:
    """Takes back what `save_learner` or the local engine wrote, and returns the version. Collective.

    Args:
        model: the network, whose parameters DeepSpeed manages.
        kind: "actor" or "critic", for the watchdog.
        optimizer: DeepSpeed's optimizer.
        folder: where the files are.
        world: the ranks.

    Raises:
        UserError: the files are of another model.
    """
    weights = TensorFiles(sorted(folder.glob("model*.safetensors")), world)
    master = TensorFiles(sorted(folder.glob("master*.safetensors")), world)
    moments = TensorFiles(sorted(folder.glob("optimizer*.safetensors")), world)
    steps = 0
    for name, p in model.named_parameters():
        tick(f"loading {kind}")
        value = weights.read(name, shape(p))
        with gathered([p], write=True):
            p.data.copy_(value)
        set_shard(p, master.read(name, shape(p)) if master.has(name) else value.float(), None)
        for key in MOMENTS:
            known = moments.has(f"{name}|{key}")
            set_shard(p, moments.read(f"{name}|{key}", shape(p)) if known else None, key)
        if moments.has(f"{name}|step"):
            steps = int(moments.read(f"{name}|step", torch.Size([])))
    set_steps(optimizer, steps)
    return world.agree(lambda: json.loads((folder / "learner.json").read_text())["version"])


def forget_moments(model: Any, optimizer: Any) -> None:
    """Adam's state as before its first step."""
    for p in model.parameters():
        for key in MOMENTS:
            set_shard(p, None, key)
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


def set_shard(p: Any, value: Tensor | None, key: str | None) -> None:
    """Puts this rank's part of a whole fp32 tensor into its master weight (key None) or Adam moment; None is 0."""
    if hasattr(p, "ds_id"):
        # DeepSpeed's own setter for whole tensors fails where the size is no multiple of the ranks.
        part = safe_get_local_fp32_param(p) if key is None else safe_get_local_optimizer_state(p, key)
        assert part is not None
        mine = torch.zeros(part.numel(), device=part.device)
        if value is not None:
            piece = value.flatten()[part.numel() * dist.get_rank() :][: part.numel()]
            mine[: len(piece)] = piece.to(part.device)
        if key is None:
            deepspeed.utils.safe_set_local_fp32_param(p, mine)
        else:
            deepspeed.utils.safe_set_local_optimizer_state(p, mine, key)
        return
    value = torch.zeros(shape(p)) if value is None else value
    if key is None:
        deepspeed.utils.safe_set_full_fp32_param(p, value)
    else:
        deepspeed.utils.safe_set_full_optimizer_state(p, value, key)


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


def gathered(parameters: list[Any], write: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Makes ZeRO-3 parameters whole for a while; with `write`, what rank 0 puts there is kept on all ranks."""
    if not hasattr(parameters[0], "ds_id"):
        return torch.no_grad()
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)


class TensorFiles:
    """Tensors of some safetensors files by name; rank 0 reads, the others get copies, one tensor at a time."""

    def __init__(self, paths: Sequence[Path], world: DistributedWorld) -> None:
        self.world = world
        self.where: dict[str, Any] = {}
        if world.rank == 0:
            for path in paths:
                file = safe_open(path, framework="pt")
                self.where |= dict.fromkeys(file.keys(), file)
        names: list[Any] = [list(self.where)]
        dist.broadcast_object_list(names, src=0)
        self.names = set(names[0])

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self.names

    def read(self, name: str, size: torch.Size) -> Tensor:
        """A tensor in fp32, on the CPU of every rank (bf16 weights are exact in fp32)."""
        if name not in self.names:
            raise UserError(
                f"the checkpoint has no tensor '{name}': it is of another model; resume the run it is from."
            )
        x = self.where[name].get_tensor(name).float() if self.world.rank == 0 else torch.empty(size)
        if self.world.size > 1:
            dist.broadcast(x, src=0)
        return x
