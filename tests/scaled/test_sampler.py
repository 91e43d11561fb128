"""vLLM on two ranks: log-probs against the learner's, with and without a push; seeds, ends, stale versions."""

import itertools
import re

import pytest
from launch import require, results

from scaled.sampler import drain_steps, even_cut

pytestmark = pytest.mark.cluster

CASES = {
    "tied-tp1": ("llama-tied", 1), "tied-tp2": ("llama-tied", 2), "untied-tp2": ("llama-untied", 2),
    "qwen-bf16-tp1": ("qwen2-tied", 1, "bfloat16"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def found(request, models, tmp_path_factory):
    require("deepspeed", "vllm")
    model, *rest = CASES[request.param]
    out = tmp_path_factory.mktemp("sampler") / "found.json"
    case = {"bf16": "bfloat16" in rest, "engines": 2 // rest[0]}
    return results(2, "sampler_worker.py", out, models / model, *rest) | case


def test_log_probs_are_the_learners_only_after_a_push(found):
    bound = 0.25 if found["bf16"] else 1e-4  # bf16 keeps three digits, and these logits reach ±10
    assert found["after_push"] < bound
    assert found["after_second_push"] < bound
    assert found["raw_logprobs"] < bound  # of a tempered and truncated sample: still the policy's own
    assert found["without_push"] > 0.1
    assert found["without_push"] > 2 * found["after_second_push"]


def test_a_push_that_went_wrong_stops_by_name(found):
    assert re.match(r"rank [01] pushed other weights to vLLM than rank [01] ", found["flipped"])
    if not found["bf16"]:  # one small step is less than bf16's rounding
        assert "it does not hold the learner's weights" in found["not_loaded"]


def test_responses_are_dealt_evenly_over_the_engines(found):
    """Whatever prompts the ranks have: 120 and 80 responses are asked for."""
    asked, drawn = zip(*found["shares"], strict=True)
    assert asked == (120, 80)
    assert drawn == ((100, 100) if found["engines"] == 2 else (200, 200))


def test_a_stale_version_is_refused(found):
    assert found["stale_refused"] == 1


def test_responses_depend_on_their_seeds_alone(found):
    assert found["same_seed"] and not found["other_seed"]
    assert found["different_samples"] == 3
    assert found["batch_invariant"] or found["bf16"]  # bf16 sums in another order in another batch
    assert found["seed_kept"]


def test_temperature_0_is_greedy_on_vllm(found):
    assert found["greedy_same"]
    assert found["greedy_best"] or found["bf16"]  # in bf16 two of the likeliest tokens may round to the same logit


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


def test_an_even_cut_leaves_nothing_out():
    for count in (0, 1, 5, 30 * 32):
        for parts in (1, 3, 16):
            bounds = even_cut(count, parts)
            sizes = [b - a for a, b in itertools.pairwise(bounds)]
            assert bounds[0] == 0 and sum(sizes) == count and max(sizes) - min(sizes) <= 1
