"""vLLM on two ranks: log-probs against the learner's, with and without a push; seeds, ends, stale versions."""

import pytest
from launch import require, results

from scaled.sampler import drain_steps

pytestmark = pytest.mark.cluster

CASES = {
    "tied-tp1": ("llama-tied", 1), "untied-tp1": ("llama-untied", 1),
    "tied-tp2": ("llama-tied", 2), "untied-tp2": ("llama-untied", 2),
    "qwen-bf16-tp1": ("qwen2-tied", 1, "bfloat16"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def found(request, models, tmp_path_factory):
    require("deepspeed", "vllm")
    model, *rest = CASES[request.param]
    out = tmp_path_factory.mktemp("sampler") / "found.json"
    return results(2, "sampler_worker.py", out, models / model, *rest) | {"bf16": "bfloat16" in rest}


def test_after_a_push_log_probs_are_the_learners_and_without_one_they_are_not(found):
    bound = 0.25 if found["bf16"] else 1e-4  # bf16 keeps three digits, and these logits reach ±10
    assert found["after_push"] < bound
    assert found["after_second_push"] < bound
    assert found["raw_logprobs"] < bound  # of a tempered and truncated sample: still the policy's own
    assert found["without_push"] > 0.1
    assert found["without_push"] > 2 * found["after_second_push"]


def test_a_stale_version_is_refused(found):
    assert found["stale_refused"] == 1


def test_responses_depend_on_their_seeds_alone(found):
    assert found["same_seed"] and not found["other_seed"]
    assert found["different_samples"] == 3
    assert found["batch_invariant"] or found["bf16"]  # bf16 sums in another order in another batch
    assert found["seed_kept"]


def test_responses_end_where_they_should(found):
    assert found["ended"] > 0 and found["stop_string"] > 0
    assert found["ends_right"] and found["cut_right"] and found["empty"]


def test_time_lost_to_stragglers_is_measured(found):
    assert 0 <= found["metrics"]["time/straggler_share"] < 1
    assert 0 <= found["metrics"]["time/empty_slots"] < 1


def test_drain_steps_by_hand():
    # Two slots: 5 | 3, then 4 after the 3: slots end at 5 and 7.
    assert drain_steps([5, 3, 4], 2) == 7
    assert drain_steps([5, 3, 4], 3) == 5
    assert drain_steps([], 2) == 0
