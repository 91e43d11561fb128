"""The GPUs that a plan knows, with the machines around them, and the one of this process."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU and the machine around it."""

    name: str
    memory: float
    """Bytes that a process can allocate: what torch reports as total capacity."""
    flops: float
    """Dense bf16 FLOP/s with fp32 accumulation, data sheet."""
    bandwidth: float
    """Bytes/s of its memory, data sheet."""
    link: float
    """Bytes/s to the other GPUs of the machine, one direction."""
    network: float
    """Bytes/s of one machine to the others, one direction, all adapters together."""
    host_link: float
    """Bytes/s between GPU and CPU memory, one direction."""
    host_memory: float
    """Bytes of CPU memory of one machine."""
    host_bandwidth: float
    """Bytes/s of a machine's CPU memory, as a CPU Adam reaches it."""


# FLOP/s, bandwidth, NVLink: NVIDIA's data sheets "A100 80GB SXM", "H100 SXM" (sparse figures halved) and
# "H200 SXM"; the Ada white paper for the RTX 4080 and 4090 (bf16 with fp32 accumulation). Capacity: what
# torch prints in out-of-memory errors on these cards. Network and CPU memory: DGX A100 (8 × 200 Gb/s),
# DGX H100 and H200 (8 × 400 Gb/s), 2 TB each; a workstation with 64 GB and 10 Gb/s Ethernet for the
# consumer cards, which have no NVLink and reach each other through the CPU over PCIe 4.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-80", 79.15 * GIB, 312e12, 2.04e12, 300e9, 200e9, 25e9, 2000e9, 200e9),
        Gpu("h100-80", 79.11 * GIB, 989e12, 3.35e12, 450e9, 400e9, 50e9, 2000e9, 300e9),
        Gpu("h200-141", 139.8 * GIB, 989e12, 4.8e12, 450e9, 400e9, 50e9, 2000e9, 300e9),
        Gpu("rtx4080-16", 15.6 * GIB, 97.5e12, 0.717e12, 10e9, 1.25e9, 20e9, 64e9, 40e9),
        Gpu("rtx4090-24", 23.6 * GIB, 165e12, 1.008e12, 10e9, 1.25e9, 20e9, 64e9, 40e9),
    )
}


def this_gpu() -> Gpu | None:
    """The GPU of this process and its machine, with speeds of the nearest known kind; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    name = properties.name.lower().replace(" ", "")
    nearest = min(
        GPUS.values(),
        key=lambda gpu: (gpu.name.partition("-")[0] not in name, abs(gpu.memory - properties.total_memory)),
    )
    host = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return dataclasses.replace(nearest, name=properties.name, memory=float(properties.total_memory), host_memory=host)


def gib(x: float) -> str:
    """Bytes as GiB with one decimal; two below one."""
    return f"{x / GIB:.2f}" if x < GIB else f"{x / GIB:.1f}"
