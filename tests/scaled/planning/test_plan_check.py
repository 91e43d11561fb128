"""The plan against real engines of a tiny model: `benchmarks/plan_check.py`, the part of it that takes a minute."""

import json

import pytest
from launch import ROOT, fork, require, torchrun

pytestmark = pytest.mark.cluster

SCRIPT = ROOT / "benchmarks" / "plan_check.py"


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """(plan − measured) / measured by case, of one check on so many ranks."""

    def get(check: str, ranks: int, *packages: str) -> dict[str, float]:
        require(*packages)
        out = tmp_path_factory.mktemp(check) / "rows.json"
        model = tmp_path_factory.mktemp("model")
        words = ("--only", check, "--cases", 1, "--tokens", 512, "--json", out)
        if check == "deepspeed":  # it measures memory: a process of its own
            done = torchrun(ranks, SCRIPT, *words, PLAN_CHECK_MODEL=str(model), timeout=600)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        else:
            fork(ranks, SCRIPT, *words, log=out.with_suffix(".log"), PLAN_CHECK_MODEL=str(model))
        return {row["case"]: row["error"] for row in json.loads(out.read_text())["rows"]}

    return get


def test_memory_of_real_learners(errors):
    """ZeRO-3 on two ranks: what lies there at rest is exact, peaks are near and rather above."""
    found = errors("deepspeed", 2, "deepspeed")
    assert {case.partition(":")[0] for case in found} == {
        "weights", "optimizer", "gradients", "at rest", "forward", "backward", "step"
    }  # fmt: skip
    for case, error in found.items():
        exact = case.startswith(("weights", "optimizer", "gradients", "at rest"))
        assert -0.002 < error < 0.002 if exact else -0.03 < error < 0.15, (case, error)


def test_flops_of_real_learners(errors):
    """Forward passes and updates, with and without recomputation: exact."""
    found = errors("learner", 1, "deepspeed")
    assert len(found) == 8
    assert all(abs(error) < 1e-3 for error in found.values()), found


def test_cache_of_a_real_sampler(errors):
    """Key and value of every layer for each token that vLLM has room for: exact."""
    found = errors("vllm", 1, "deepspeed", "vllm")
    assert list(found.values()) == [0.0]
