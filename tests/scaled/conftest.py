"""Tiny models, and two hosts on one machine."""

from pathlib import Path

import pytest
from hosts import Unable, two_hosts
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
    """Two hosts on this machine, see `hosts.two_hosts`."""
    try:
        with two_hosts() as pair:
            yield pair
    except Unable as error:
        missing(str(error))
