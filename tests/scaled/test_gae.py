"""`scaled.gae` against eq. 3 written as a double sum, against `minivapo.vapo.gae`, and against its own bound."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import minivapo.vapo
import scaled.gae
from scaled.gae import CHUNK, gae, packed_gae

DIRT = (float("nan"), 1e30, float("inf"), -float("inf"))
coefficients = st.one_of(st.sampled_from((0.0, 1.0)), st.floats(0, 1))


def by_definition(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Â_t = Σ_l (γλ)^l δ_{t+l} for one response without gaps, every power and every sum written out."""
    r, v = rewards.double(), torch.cat([values.double(), torch.zeros(1).double()])
    delta = r + gamma * v[1:] - v[:-1]
    distance = torch.arange(len(r)) - torch.arange(len(r))[:, None]
    weight = torch.where(distance >= 0, torch.tensor(gamma * lam, dtype=torch.float64) ** distance.clamp(min=0), 0.0)
    return weight @ delta


def rows_by_definition(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: Tensor) -> Tensor:
    expected = torch.zeros(rewards.shape, dtype=torch.float64)
    for i, keep in enumerate(mask.bool()):
        expected[i, keep] = by_definition(rewards[i, keep], values[i, keep], gamma, float(lam[i]))
    return expected


@st.composite
def batches(draw, dtype: torch.dtype = torch.float64, max_time: int = 70):
    """Rewards, values, mask, λ of a ragged batch: padding on both sides, gaps, dirt under the mask."""
    batch, time = draw(st.integers(1, 5)), draw(st.integers(1, max_time))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rewards, values = torch.randn(2, batch, time, generator=generator, dtype=dtype)
    bounds = torch.randint(0, time + 1, (2, batch, 1), generator=generator).sort(0).values
    position = torch.arange(time)
    mask = (bounds[0] <= position) & (position < bounds[1])
    mask &= torch.rand(batch, time, generator=generator) < draw(st.sampled_from((0.3, 0.9, 1.0)))
    for x in (rewards, values):
        dirt = torch.tensor(DIRT, dtype=dtype)[torch.randint(len(DIRT), (batch, time), generator=generator)]
        x.copy_(torch.where(mask, x, dirt))
    lam = torch.tensor(draw(st.lists(coefficients, min_size=batch, max_size=batch)), dtype=torch.float64)
    return rewards, values, mask, lam


def pack(rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    lengths = mask.sum(1)
    return rewards[mask], values[mask], torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


@settings(deadline=None, max_examples=150)
@given(batches(), coefficients)
def test_padded_and_packed_equal_the_double_sum(batch, gamma):
    rewards, values, mask, lam = batch
    expected = rows_by_definition(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(gae(rewards, values, mask, gamma, lam), expected, atol=1e-10, rtol=0)
    packed = packed_gae(*pack(rewards, values, mask), gamma, lam)
    torch.testing.assert_close(packed, expected[mask], atol=1e-10, rtol=0)


@settings(deadline=None, max_examples=100)
@given(batches(), coefficients, coefficients)
def test_equals_the_readable_file(batch, gamma, scalar):
    rewards, values, mask, lam = batch
    for each in (lam, scalar):
        expected = minivapo.vapo.gae(rewards, values, mask, gamma, each)
        torch.testing.assert_close(gae(rewards, values, mask, gamma, each), expected, atol=1e-10, rtol=0)
    packed = packed_gae(*pack(rewards, values, mask), gamma, scalar)
    torch.testing.assert_close(packed, expected[mask], atol=1e-10, rtol=0)


@settings(deadline=None, max_examples=50)
@given(batches(dtype=torch.float32), coefficients)
def test_float32_equals_the_readable_file_in_float64(batch, gamma):
    rewards, values, mask, lam = batch
    expected = minivapo.vapo.gae(rewards.double(), values.double(), mask, gamma, lam)
    actual = gae(rewards, values, mask, gamma, lam)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=1e-8, rtol=2**-24)
    packed = packed_gae(*pack(rewards, values, mask), gamma, lam)
    torch.testing.assert_close(packed.double(), expected[mask], atol=1e-8, rtol=2**-24)


@settings(deadline=None, max_examples=30)
@given(batches(max_time=40), coefficients, st.sampled_from((torch.int64, torch.uint8, torch.float32)))
def test_any_mask_dtype_and_any_padding_give_the_same(batch, gamma, dtype):
    rewards, values, mask, lam = batch
    expected = gae(rewards, values, mask, gamma, lam)
    assert torch.equal(gae(rewards, values, mask.to(dtype), gamma, lam), expected)
    assert (expected[~mask] == 0).all()
    for left, right in ((0, 7), (5, 0), (CHUNK, 1)):
        wide_rewards, wide_values = (
            torch.nn.functional.pad(x, (left, right), value=float("nan")) for x in (rewards, values)
        )
        wide_mask = torch.nn.functional.pad(mask, (left, right))
        actual = gae(wide_rewards, wide_values, wide_mask, gamma, lam)
        torch.testing.assert_close(actual[:, left : left + mask.shape[1]], expected, atol=1e-13, rtol=0)
        assert (actual[~wide_mask] == 0).all()


def test_golden():
    """r = (0, 0, 1), V = (.5, .25, .75), γ = 1, λ = ½: δ = (−¼, ½, ¼), Â₂ = ¼, Â₁ = ½ + ⅛, Â₀ = −¼ + 5/16."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, 0.25, 0.75]])
    expected = torch.tensor([[1 / 16, 5 / 8, 1 / 4]])
    assert torch.equal(gae(rewards, values, torch.ones(1, 3), 1.0, 0.5), expected)
    assert torch.equal(packed_gae(rewards[0], values[0], torch.tensor([0, 3]), 1.0, 0.5), expected[0])


def test_the_ends_of_lambda_and_gamma():
    rewards, values = torch.randn(2, 3, 50, dtype=torch.float64)
    mask = torch.ones(3, 50)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    returns = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 1.0), returns - values)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 0.0), rewards + following - values)
    torch.testing.assert_close(gae(rewards, values, mask, 0.0, 1.0), rewards - values)
    sparse = torch.zeros(1, 20_000)
    sparse[:, -1] = 1
    monte_carlo = gae(sparse, torch.zeros_like(sparse), torch.ones_like(sparse), 1.0, 1.0)
    assert (monte_carlo == 1).all(), "the outcome must reach the first token undiminished"


LONG = [
    (1, 1, False),
    (1, 100_000, True),
    (3, 20_481, False),
    (700, 400, True),
    (2, 2 * CHUNK, True),
    (9, CHUNK + 1, False),
]


@pytest.mark.once
@pytest.mark.parametrize(("batch", "time", "gaps"), LONG)
def test_long_rows(batch, time, gaps):
    """Lengths up to 10⁵ and batches worked on in several parts, λ per row, against a loop in float64."""
    generator = torch.Generator().manual_seed(batch + time)
    rewards, values = torch.randn(2, batch, time, generator=generator, dtype=torch.float64)
    mask = torch.arange(time) < torch.randint(1, time + 1, (batch, 1), generator=generator)
    if gaps:
        mask = mask & (torch.arange(time) % 37 > 4)
    rewards[~mask], values[~mask] = float("nan"), float("inf")
    lam = torch.rand(batch, generator=generator, dtype=torch.float64) ** 0.01
    lam[0] = 1.0
    expected = minivapo.vapo.gae(rewards, values, mask, 1.0, lam)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, lam), expected, atol=1e-10, rtol=1e-11)
    packed = packed_gae(*pack(rewards, values, mask), 1.0, lam)
    torch.testing.assert_close(packed, expected[mask], atol=1e-10, rtol=1e-11)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=60), st.integers(0, 2**31), st.sampled_from((1, 4, 10**6)))
def test_packed_segments_are_alone(lengths, seed, group):
    """Empty and one-token segments, several groups: each segment gets what it would get by itself."""
    generator = torch.Generator().manual_seed(seed)
    boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    rewards, values = torch.randn(2, int(boundaries[-1]), generator=generator, dtype=torch.float64)
    lam = torch.rand(len(lengths), generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaled.gae, "CPU_TOKENS", group * CHUNK)
        actual = packed_gae(rewards, values, boundaries, 0.99, lam)
    assert actual.shape == rewards.shape
    for i, (start, stop) in enumerate(pairwise(boundaries.tolist())):
        alone = by_definition(rewards[start:stop], values[start:stop], 0.99, float(lam[i]))
        torch.testing.assert_close(actual[start:stop], alone, atol=1e-12, rtol=0)


def with_extended_precision(rewards: Tensor, values: Tensor, gamma: float, lam: float):
    """Eq. 3 as the plain loop in numpy's long double, with the scale of the stated bound beside it."""
    r, v = (x.double().numpy().astype(np.longdouble) for x in (rewards, values))
    advantage, scale = np.zeros_like(r), np.zeros_like(r)
    g, l = np.longdouble(gamma), np.longdouble(lam)
    next_advantage = next_value = handed = np.longdouble(0)
    for t in reversed(range(len(r))):
        next_advantage = advantage[t] = r[t] + g * next_value - v[t] + g * l * next_advantage
        next_value = v[t]
        scale[t] = abs(r[t]) + abs(v[t]) + handed
        handed = g * (1 - l) * abs(v[t]) + g * l * (abs(r[t]) + handed)
    return advantage, scale


@pytest.mark.parametrize("length", [1, 10, 1_000, 100_000])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.9998), (0.999, 0.95), (1.0, 0.0)])
def test_float32_bound_does_not_grow_with_length(length, gamma, lam):
    """|error_t| ≤ 2⁻²⁴ |Â_t| + 2⁻³⁰ scale_t, with dense rewards: the case where errors would pile up."""
    rewards, values = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
    rewards = rewards + 0.5
    exact, scale = with_extended_precision(rewards, values, gamma, lam)
    bound = 2.0**-24 * abs(exact) + 2.0**-30 * scale
    for actual in (
        gae(rewards[None], values[None], torch.ones(1, length), gamma, lam)[0],
        packed_gae(rewards, values, torch.tensor([0, length]), gamma, lam),
    ):
        assert (abs(actual.numpy() - exact) <= bound).all()
    if length == 100_000 and gamma * lam == 1:
        # The common loop keeps its sum in float32: it must break the bound, or the bound says nothing.
        delta = (rewards + torch.nn.functional.pad(values[1:], (0, 1)) - values).numpy()
        common = np.cumsum(delta[::-1], dtype=np.float32)[::-1]
        assert (abs(common - exact) > bound).mean() > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes_are_rounded_once(dtype):
    rewards, values = torch.randn(2, 2, 300).to(dtype)
    mask = torch.ones(2, 300)
    expected = gae(rewards.double(), values.double(), mask, 1.0, 0.99).to(dtype)
    assert torch.equal(gae(rewards, values, mask, 1.0, 0.99), expected)


def test_no_gradient_no_change_of_arguments_any_layout():
    rewards, values = torch.randn(2, 40, 6).transpose(1, 2).requires_grad_()
    mask, lam = torch.rand(6, 40) < 0.8, torch.rand(6)
    before = rewards.clone(), values.clone(), mask.clone(), lam.clone()
    actual = gae(rewards, values, mask, 0.9, lam)
    assert not actual.requires_grad
    assert all(torch.equal(x, y) for x, y in zip((rewards, values, mask, lam), before, strict=True))
    assert torch.equal(actual, gae(rewards.detach().contiguous(), values.detach().contiguous(), mask, 0.9, lam))
    r, v = torch.randn(2, 80)[:, ::2]
    boundaries = torch.tensor([0, 40])
    assert torch.equal(packed_gae(r, v, boundaries), packed_gae(r.contiguous(), v.contiguous(), boundaries))


def test_nothing_in_nothing_out():
    for shape in ((0, 5), (3, 0), (0, 0)):
        nothing = torch.zeros(shape)
        assert gae(nothing, nothing, nothing, 1.0, torch.ones(shape[0])).shape == shape
    for boundaries in ([0], [0, 0, 0]):
        nothing = torch.zeros(0)
        assert packed_gae(nothing, nothing, torch.tensor(boundaries)).shape == (0,)


class CountOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_does_not_loop_over_time():
    """The number of operations grows with the logarithm of the length only, while a part fits the cache."""
    counts = []
    for time in (1_000, 100_000):
        x = torch.randn(1, time)
        with CountOperations() as operations:
            gae(x, x, torch.ones(1, time), 1.0, 0.99)
        counts.append(operations.count)
    assert counts[1] < 2 * counts[0] < 1_000, counts


# Under jaxtyping's hook a wrong shape is refused one step earlier, with a TypeError.
WRONG = (ValueError, TypeError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 1.5}, "gamma must lie"),
        ({"gamma": float("nan")}, "gamma must lie"),
        ({"lam": -0.1}, "lam must lie"),
        ({"lam": float("nan")}, "lam must lie"),
        ({"lam": torch.tensor([0.5, 1.5])}, "every lam must lie"),
        ({"lam": torch.tensor([0.5, float("nan")])}, "every lam must lie"),
        ({"values": torch.zeros(2, 3, dtype=torch.float64)}, "floating dtype"),
    ],
)
def test_refuses_bad_arguments(change, message):
    x = torch.zeros(2, 3)
    with pytest.raises(WRONG, match=message):
        gae(**{"rewards": x, "values": x, "mask": x, **change})
    change = {key: value.flatten() if key == "values" else value for key, value in change.items()}
    with pytest.raises(WRONG, match=message):
        packed_gae(**{"rewards": x.view(-1), "values": x.view(-1), "cu_seqlens": torch.tensor([0, 3, 6]), **change})


@pytest.mark.parametrize("boundaries", [[1, 6], [0, 5], [0, 7], [0, 4, 3, 6], [0, -1, 6]])
def test_refuses_bad_boundaries(boundaries):
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the number of tokens, 6"):
        packed_gae(torch.zeros(6), torch.zeros(6), torch.tensor(boundaries))


def test_refuses_bad_shapes():
    x = torch.zeros(2, 3)
    for bad in ((x, x, x[:, :2]), (x, x[:1], x), (x[0], x[0], x[0])):
        with pytest.raises(WRONG):
            gae(*bad)
    for bad_lam in (torch.ones(3), torch.ones(1, 2), torch.ones(2, 3)):
        with pytest.raises(WRONG):
            gae(x, x, x, 1.0, bad_lam)
    with pytest.raises(WRONG):
        packed_gae(x[0], x[0], torch.tensor([0.0, 3.0]))
    with pytest.raises(WRONG):
        packed_gae(x[0], x[0], torch.tensor([], dtype=torch.int64))
    with pytest.raises(WRONG):
        packed_gae(x[0], x[0, :2], torch.tensor([0, 3]))
    with pytest.raises(WRONG):
        gae(x.long(), x.long(), x)
