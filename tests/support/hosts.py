"""Two hosts on one machine: network namespaces joined by a cable, for what happens when one of them is lost."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from launch import ROOT, environment


class Host(NamedTuple):
    """A namespace, its address and its end of the cable."""

    name: str
    address: str
    cable: str


class Unable(Exception):
    """This machine has no network namespaces for us."""


@contextlib.contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Makes both, and takes them away.

    Raises:
        Unable: says what is missing.
    """
    ip = shutil.which("ip")
    if ip is None or os.geteuid() != 0:
        raise Unable("iproute2 with root")
    number = os.getpid() % 10000
    hosts = [Host(f"vapo{number}{side}", f"10.77.0.{i + 1}", f"v{number}{side}") for i, side in enumerate("ab")]

    def run(*words: str) -> None:
        subprocess.run([ip, *words], check=True, capture_output=True)

    try:
        try:
            for host in hosts:
                run("netns", "add", host.name)
            run("link", "add", hosts[0].cable, "type", "veth", "peer", "name", hosts[1].cable)
            for host in hosts:
                run("link", "set", host.cable, "netns", host.name)
                run("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.cable)
                run("-n", host.name, "link", "set", host.cable, "up")
                run("-n", host.name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            raise Unable(f"permission to make network namespaces ({error.stderr.decode().strip()})") from error
        yield hosts
    finally:
        for host in hosts:
            subprocess.run([ip, "netns", "del", host.name], capture_output=True)


def start_on(host: Host, node: int, first: Host, *words: object, stdout: Any, stderr: Any) -> subprocess.Popen:
    """Starts a host's launcher with one rank; `words` is a script or `-m module`, and its arguments.

    Args:
        host: where.
        node: its number in the job.
        first: the host of rank 0, where the ranks find each other.
        words: what to run.
        stdout, stderr: where its output goes.
    """
    command = [
        "ip", "netns", "exec", host.name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
        "--nproc_per_node", "1", "--node_rank", str(node), "--rdzv_backend", "static",
        "--rdzv_endpoint", f"{first.address}:29555", "--rdzv_id", "7", *map(str, words),
    ]  # fmt: skip
    env = environment(GLOO_SOCKET_IFNAME=host.cable, TP_SOCKET_IFNAME=host.cable)
    return subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, env=env, cwd=ROOT, start_new_session=True)


def cut(host: Host) -> None:
    """Takes a host off the network."""
    subprocess.run(["ip", "-n", host.name, "link", "set", host.cable, "down"], check=True)


def join(host: Host) -> None:
    """Puts it back."""
    subprocess.run(["ip", "-n", host.name, "link", "set", host.cable, "up"], check=True)


def processes(host: Host) -> list[int]:
    """What runs on a host."""
    found = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]
