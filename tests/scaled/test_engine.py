"""What the main run of test_train.py does not use: no critic, a reference, dynamic sampling, shared vLLM."""

import math

import pytest
from launch import require, results

pytestmark = pytest.mark.cluster


def test_dapo_with_a_reference_on_a_shared_engine(models, tmp_path):
    require("deepspeed", "vllm")
    found = results(2, "engine_worker.py", tmp_path / "found.json", models / "llama-untied", "dapo")
    assert set(found["gaps"]) == {"sampler", "actor alone", "actor training"} and max(found["gaps"].values()) < 1e-4
    trained = [line for line in found["lines"] if line["step"] > 0]
    assert len(trained) == 2
    for line in trained:
        assert line["policy/sampler_gap_max"] < 1e-4
        assert "critic/loss" not in line and "value/mean" not in line
        assert all(math.isfinite(x) for x in line.values())
    assert 0 <= trained[0]["actor/kl_reference"] < trained[1]["actor/kl_reference"]
    # No prompt is lost or doubled: each group has its own number, and all numbers were drawn.
    groups = found["groups"]
    assert len(groups) == 12 and all(groups.count(g) == 2 for g in groups)
    assert max(groups) < found["prompts"] and found["prompts"] > 12
    assert found["calls"] == 0


@pytest.fixture(scope="module")
def vapo(models, tmp_path_factory):
    """What becomes of a short run of VAPO on one rank."""
    require("deepspeed", "vllm")
    out = tmp_path_factory.mktemp("vapo") / "found.json"
    return results(1, "engine_worker.py", out, models / "llama-untied", "vapo")


def test_a_gap_that_grows_ends_a_cluster_run(vapo):
    assert vapo["gap_now"] == ""
    assert "policy/sampler_gap_mean has grown to 0.002 nats, rounding explains 0.001" in vapo["gap_grown"]


@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_dropout_while_the_cluster_trains_is_refused(vapo, kind):
    assert f"the {kind} gives other numbers while it trains, as dropout does" in vapo[f"{kind}_dropout"]


def test_the_cluster_computes_advantages_in_parallel(vapo):
    found = vapo
    assert len(found["gaps"]) == 5 and max(found["gaps"].values()) < 1e-4  # the probe's, with those of the critic
    # Every one of them: advantages and returns, of one rollout of value-pretraining and two of training.
    assert found["parallel"] and found["calls"] == 6
    assert all(math.isfinite(x) for line in found["lines"] for x in line.values())
