"""Packed rows against each row alone, on the cluster's learner: who sees its neighbours is refused."""

import csv
import subprocess
import sys

import pytest
from launch import ROOT, environment, require

pytestmark = pytest.mark.cluster

LEAKS = ["MPT", "Qwen 3.5", "LFM 2", "Mamba"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What becomes of each family on the cluster, from the script that makes docs/models.md."""
    require("deepspeed")
    folder = tmp_path_factory.mktemp("models")
    words = ["--out", folder / "models.csv", "--page", folder / "models.md", "--only", "Llama", "gpt-oss", *LEAKS]
    script = [sys.executable, ROOT / "benchmarks/which_models.py", *words]
    done = subprocess.run(script, capture_output=True, text=True, env=environment(), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    with (folder / "models.csv").open(newline="") as file:
        return {row["family"]: row["cluster"] for row in csv.DictReader(file)}


def test_a_llama_does_not_see_its_neighbours(found):
    assert found["Llama"] == "works"


@pytest.mark.parametrize("name", LEAKS)
def test_families_that_leak_between_packed_rows_are_refused(found, name):
    assert "a row's numbers in the actor depend on the rows beside it" in found[name]
    assert "Train it with minivapo train" in found[name]


def test_a_model_without_this_attention_is_refused(found):
    assert "has no attention of the kind sdpa" in found["gpt-oss"]
