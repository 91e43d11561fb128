"""Ranks: the process group, sums over it, and rows that travel between its ranks."""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from minivapo.interfaces import UserError, World

T = TypeVar("T")

ON_GPU = torch.cuda.is_available()
"""The one gate between GPU and CPU: devices, backends, fused kernels and sleep mode depend on it alone."""


def local_device() -> torch.device:
    """This rank's device."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if ON_GPU else torch.device("cpu")


@contextlib.contextmanager
def all_cores() -> Iterator[None]:
    """Torch computes on this rank's share of the cores for a while, whatever OMP_NUM_THREADS was at the start.

    For AdamW in CPU memory: torchrun sets that variable to 1, and so does vLLM's start with torch's own number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def start(timeout_minutes: float = 30.0) -> DistributedWorld:
    """Joins the ranks, and makes DeepSpeed use the same process group; idempotent."""
    import deepspeed

    # Without this the CPU build compiles a shared-memory op for a minute at the first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    world = join(timeout_minutes)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    deepspeed.init_distributed(dist_backend="nccl" if ON_GPU else "gloo", timeout=timeout, verbose=False)
    return world


def join(timeout_minutes: float = 30.0) -> DistributedWorld:
    """Joins the process group that torchrun, deepspeed or srun described in the environment.

    CPU tensors travel over gloo, CUDA tensors over NCCL. A rank that waits for the others longer than the
    timeout raises, so that a dead or hung rank ends the job.
    """
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(key, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(free_port()) if os.environ["WORLD_SIZE"] == "1" else "29500"
    if ON_GPU:
        torch.cuda.set_device(local_device())
    if not dist.is_initialized():
        timeout = datetime.timedelta(minutes=timeout_minutes)
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        # A launcher that starts the ranks anew keeps its store: they would call those that are no more.
        store = dist.PrefixStore(f"start/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if ON_GPU else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return DistributedWorld()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class DistributedWorld(World):
    """`minivapo.interfaces.World` over torch.distributed; tensors stay on the CPU."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks; x itself is left alone."""
        return self.reduce(x, dist.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """Maximum over ranks."""
        return self.reduce(x, dist.ReduceOp.MAX)

    def reduce(self, x: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """An all-reduce of a copy."""
        x = x.detach().cpu().clone()
        dist.all_reduce(x, operation)
        return x

    def agree(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on every rank; a UserError there is raised on every rank."""
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = make()
            except UserError as error:
                box[1] = str(error)
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise UserError(box[1])
        return box[0]

    def gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of all ranks, whose first dimensions may differ."""
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(x)]))
        longest = int(torch.cat(sizes).max())
        padded = torch.zeros(longest, *x.shape[1:], dtype=x.dtype)
        padded[: len(x)] = x
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return [part[: int(n)] for part, n in zip(parts, sizes, strict=True)]

    def exchange(self, parts: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Sends parts[r] to rank r; returns what each rank sent here."""
        if self.size == 1:
            return list(parts)
        boxes = []
        for part in parts:
            buffer = io.BytesIO()
            torch.save({k: x.contiguous().clone() for k, x in part.items()}, buffer)
            boxes.append(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
        sizes = torch.tensor([len(box) for box in boxes])
        incoming = torch.zeros_like(sizes)
        dist.all_to_all_single(incoming, sizes)
        received = torch.zeros(int(incoming.sum()), dtype=torch.uint8)
        dist.all_to_all_single(received, torch.cat(boxes), incoming.tolist(), sizes.tolist())
        return [
            torch.load(io.BytesIO(box.numpy().tobytes()), weights_only=True)
            for box in received.split(incoming.tolist())
        ]
