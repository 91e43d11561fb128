"""Ranks that share rows: the same updates as without, the same slices, and refusals before weights load."""

import pytest
import torch
from launch import require, results

from minivapo.interfaces import UserError
from scaled.config import Settings, check_heads
from scaled.layers.packing import pack, slice_of

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", params=[2, 4], ids=["one group", "two groups"])
def found(request, models, tmp_path_factory):
    """Findings of two ranks that share all rows, and of four in two groups; one key-value head serves two ranks."""
    require("deepspeed")
    out = tmp_path_factory.mktemp("ulysses") / "found.json"
    family = "llama-untied" if request.param == 2 else "qwen2-tied"
    return results(request.param, "ulysses_worker.py", out, models / family)


@pytest.mark.parametrize("case", ["actor-zero3", "actor-zero2", "critic-zero3", "critic-zero2"])
def test_updates_equal_those_without(found, case):
    case = found[case]
    assert case["moved"] > 2e-5  # the updates are no smaller than what they are compared to
    assert case["weights"] < 5e-6  # rounding decides the sign of a step where a gradient is near 0
    assert case["outputs"] < 1e-5
    assert case["metrics"] < 1e-5


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_slices_are_equal_parts_of_the_pack(ranks):
    tokens, totals = torch.arange(24).view(3, 8), torch.tensor([8, 3, 6])
    whole = pack(tokens, totals, "cpu")
    parts = [slice_of(whole, place, ranks) for place in range(ranks)]
    assert len({len(part.targets) for part in parts}) == 1
    n = len(whole.targets)
    for name in ("tokens", "positions", "targets"):
        joined = torch.cat([getattr(part, name).flatten() for part in parts])
        assert torch.equal(joined[:n], getattr(whole, name).flatten())
        assert len(joined) - n == -n % ranks
    assert all(part.bounds[-1] == sum(len(p.targets) for p in parts) for part in parts)
    assert torch.equal(parts[0].bounds[: len(whole.bounds)], whole.bounds)


def test_what_cannot_be_shared_is_refused_before_weights_load(models):
    require("deepspeed", "vllm")
    from toy import toy_config

    from scaled.engine import ScaledEngine

    class Nowhere:
        """A world in which anything that loads would fail."""

    config = toy_config("vapo", max_prompt_tokens=16)
    with pytest.raises(UserError, match=r"sequence_parallel is 4, but .* has 2 attention heads"):
        ScaledEngine(models / "llama-untied", config, Settings(sequence_parallel=4), Nowhere())
    check_heads(8, 40, 8, "a 32B model")
    check_heads(4, 28, 2, "two ranks for each key-value head")
    with pytest.raises(UserError, match="28 attention heads"):
        check_heads(8, 28, 4, "a 7B model")
    with pytest.raises(UserError, match="sequence_parallel has its own"):
        Settings(sequence_parallel=2, attention="flash_attention_2")


def test_attention_it_does_not_know_is_refused():
    from scaled.layers.ulysses import attend

    x = torch.zeros(1, 2, 4, 8)
    with pytest.raises(UserError, match="sliding_window"):
        attend(None, x, x, x, None, cu_seq_lens_q=torch.tensor([0, 4]), max_length_q=4, sliding_window=2)
