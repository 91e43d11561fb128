"""One alarm for all ranks: who fails says so in the job's store, and every rank hears of it within seconds.

Every rank also leaves a sign of life there each second. Rank 0 watches all of them, and all watch rank 0, each by its
own steady clock: a rank that is frozen, killed or cut off is named, with what it last did. The store is the one by
which the ranks found each other (torchrun's own, or rank 0's), over a connection of its own.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist


@dataclass(frozen=True)
class Failure:
    """Why a job ends."""

    rank: int
    host: str
    """See `this_host`."""
    phase: str
    """What the rank did."""
    text: str
    """One line: what happened and what to do."""
    process: int = 0
    """Of a rank that gives no sign of life; others do not need it."""

    def line(self, here: str = "") -> str:
        """The line for a terminal; the machine is named where it is another one than `here`."""
        where = f" on {self.host.partition('/')[0]}" if here and self.host != here else ""
        phase = f" [in: {self.phase}]" if self.phase not in ("", "start") and self.phase not in self.text else ""
        return f"scaled.train: rank {self.rank}{where}: {self.text}{phase}"


def this_host() -> str:
    """The machine's name, and its number in the job: two hosts of one name are still two."""
    return f"{socket.gethostname()}/{os.environ.get('GROUP_RANK') or os.environ.get('SLURM_NODEID', '0')}"


class Alarm:
    """A rank's connection to the store of the job.

    Args:
        rank: this one.
        size: ranks.
        wait: seconds to try to connect.

    Raises:
        RuntimeError: there is no store.
    """

    def __init__(self, rank: int, size: int, wait: float = 30.0) -> None:
        self.rank, self.size, self.host = rank, size, this_host()
        self.count = 0
        self.seen: dict[int, tuple[str, float]] = {}
        timeout = datetime.timedelta(seconds=wait)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
        # A launcher that starts the ranks anew keeps its store.
        self.store = dist.PrefixStore(f"alarm/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def claim(self) -> bool:
        """True for the first rank that asks: it is the one whose failure counts."""
        return self.store.add("claims", 1) == 1

    def publish(self, failure: Failure) -> None:
        """Tells all ranks."""
        self.store.set("failure", json.dumps(dataclasses.asdict(failure)))

    def heard(self) -> Failure | None:
        """What was published, if anything."""
        if not self.store.check(["failure"]):
            return None
        return Failure(**json.loads(self.store.get("failure")))

    def beat(self, phase: str) -> None:
        """A sign of life."""
        self.count += 1
        self.store.set(f"beat/{self.rank}", json.dumps([self.count, self.host, os.getpid(), phase]))

    def read(self, rank: int) -> tuple[str, int, str] | None:
        """Machine, process and phase in a rank's last sign of life; None before its first."""
        key = f"beat/{rank}"
        if not self.store.check([key]):
            return None
        text = self.store.get(key).decode()
        if self.seen.get(rank, ("", 0.0))[0] != text:
            self.seen[rank] = (text, time.monotonic())
        _, host, process, phase = json.loads(text)
        return host, process, phase

    def silent(self, limit: float) -> Failure | None:
        """A rank that this one watches and that has given no new sign of life for so many seconds."""
        for rank in range(self.size) if self.rank == 0 else [0]:
            found = self.read(rank)
            if rank == self.rank or found is None or found[2] == "done":
                continue
            quiet = time.monotonic() - self.seen[rank][1]
            if quiet > limit:
                text = f"no sign of life for {quiet:.0f} s: it is frozen, or its machine or network is lost"
                return Failure(rank, found[0], found[2], text, found[1])
        return None

    def dead(self) -> Failure | None:
        """A rank of this machine whose process is no more."""
        for rank in range(self.size):
            found = self.read(rank)
            if found and rank != self.rank and found[0] == self.host and found[2] != "done" and gone(found[1]):
                return Failure(rank, found[0], found[2], "its process died without a word: killed, or out of memory")
        return None


def gone(process: int) -> bool:
    """Whether a process has ended, buried by its parent or not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state in "ZX"
