"""benchmarks/gpu_day.py at toy size on the CPU: its steps, and how a day goes on that was cut off."""

import importlib.util
import json
import subprocess
import sys

import pytest
from launch import ROOT, environment, require

SCRIPT = ROOT / "benchmarks" / "gpu_day.py"


@pytest.fixture
def day(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_day", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def run(out, *words):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT)


QUICK = ("attention", "head", "gae", "matmul")


def test_quick_steps_pass(day):
    for name in QUICK:
        assert day.STEPS[name]("cpu")["passed"], name


def test_a_day_goes_on_where_it_stopped(day, tmp_path, monkeypatch):
    out, done = tmp_path / "day.json", []
    passed = {"passed": True, "seconds": 1.0}
    out.write_text(json.dumps(dict.fromkeys(list(day.STEPS)[:-2], passed) | {"local": passed | {"passed": False}}))
    monkeypatch.setattr(day, "in_a_process", lambda name, device: done.append(name) or {"passed": True, "seconds": 0.0})
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--device", "cpu", "--out", str(out)])
    assert day.main() == 0
    assert done == ["local", *list(day.STEPS)[-2:]]
    assert all(found["passed"] for found in json.loads(out.read_text()).values())


def test_a_step_that_takes_too_long_or_crashes_is_a_finding(day, monkeypatch):
    monkeypatch.setattr(day, "LIMIT", 0.05)
    found = day.in_a_process("matmul", "cpu")
    assert not found["passed"] and "ended after" in found["said"]
    monkeypatch.setattr(day, "LIMIT", 100)
    monkeypatch.setattr(day.sys, "executable", "/bin/false")
    assert not day.in_a_process("matmul", "cpu")["passed"]


@pytest.mark.cluster
def test_the_whole_day_at_toy_size(tmp_path):
    require("deepspeed", "vllm")
    out = tmp_path / "day.json"
    # Each step takes 15 s to start: not again what is tested elsewhere, or is the same on a CPU.
    known = {name: {"passed": True, "seconds": 0.0} for name in (*QUICK, "mfu-1.5b", "laptop-run", "ulysses")}
    out.write_text(json.dumps(known))
    done = run(out)
    found = json.loads(out.read_text())
    assert done.returncode == 0, {name: step for name, step in found.items() if not step["passed"]}
    assert all(step["seconds"] < 480 for step in found.values())
