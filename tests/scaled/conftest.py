"""Tiny models, and two hosts on one machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from launch import missing


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A folder with tiny models: llama-tied, llama-untied, qwen2-tied, qwen2-untied."""
    from toy import make_model

    folder = tmp_path_factory.mktemp("models")
    for family in ("llama", "qwen2"):
        for tie in (True, False):
            make_model(folder / f"{family}-{'tied' if tie else 'untied'}", tie, family)
    return folder


@pytest.fixture(scope="session")
def namespaces():
    """Two network namespaces joined by a cable, as two hosts; yields their names and addresses."""
    ip = shutil.which("ip")
    if ip is None or os.geteuid() != 0:
        missing("iproute2 with root")
    names = [f"vapo{os.getpid() % 10000}{side}" for side in "ab"]

    def run(*words: str) -> None:
        subprocess.run([ip, *words], check=True, capture_output=True)

    try:
        for name in names:
            run("netns", "add", name)
        cable = [f"v{os.getpid() % 100000}{side}" for side in "ab"]
        run("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for i, (name, end) in enumerate(zip(names, cable, strict=True)):
            run("link", "set", end, "netns", name)
            run("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", end)
            run("-n", name, "link", "set", end, "up")
            run("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for name in names:
            subprocess.run([ip, "netns", "del", name], capture_output=True)
        missing(f"permission to make network namespaces ({error.stderr.decode().strip()})")
    yield [(name, f"10.77.0.{i + 1}", cable[i]) for i, name in enumerate(names)]
    for name in names:
        subprocess.run([ip, "netns", "del", name], capture_output=True)
