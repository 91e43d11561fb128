"""What the main run of test_scaled_train.py does not use: no critic, a reference, dynamic sampling, shared vLLM."""

import math

import pytest
from launch import require, results

pytestmark = pytest.mark.cluster


def test_dapo_with_a_reference_on_a_shared_engine(models, tmp_path):
    require("deepspeed", "vllm")
    found = results(2, "engine_worker.py", tmp_path / "found.json", models / "llama-untied")
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
