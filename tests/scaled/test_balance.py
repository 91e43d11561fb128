"""Rows to ranks and to micro-batches, and their one journey between the ranks."""

import pytest
import torch
from fakes import on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from minivapo.interfaces import Rollout
from scaled.balance import assign, balance, cut, deal, imbalance, make_rows, tensors


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 10**5), min_size=1, max_size=60), st.integers(1, 9))
def test_assign_gives_every_rank_work_within_the_greedy_bound(lengths, ranks):
    owner = assign([float(n) for n in lengths], ranks)
    loads = [sum(n for n, r in zip(lengths, owner, strict=True) if r == rank) for rank in range(ranks)]
    assert sum(loads) == sum(lengths)
    if len(lengths) >= ranks:
        assert min(loads) > 0
    # Longest first is within 4/3 of the best, which is at least the mean and at least the longest (Graham 1969).
    best = max(sum(lengths) / ranks, max(lengths), *(sorted(lengths, reverse=True)[ranks - 1 : ranks + 1] or [0]))
    pair = sorted(lengths, reverse=True)[ranks - 1 : ranks + 1]
    best = max(best, sum(pair) if len(pair) == 2 else 0)
    assert max(loads) <= 4 / 3 * best + 1e-6
    assert imbalance(lengths, owner, ranks) == pytest.approx(max(loads) * ranks / sum(loads))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 200))
def test_cut_keeps_every_row_once_and_the_budget(totals, budget):
    parts = cut(totals, budget)
    assert sorted(i for part in parts for i in part) == list(range(len(totals)))
    assert all(sum(totals[i] for i in part) <= budget or len(part) == 1 for part in parts)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 10**4), min_size=24, max_size=24), st.sampled_from([1, 2, 3, 4, 6]))
def test_every_mini_batch_is_balanced_over_the_ranks(lengths, ranks):
    costs = [float(n) for n in lengths]
    owner = deal(costs, 6, ranks)
    assert len(owner) == 24
    for start in range(0, 24, 6):
        batch, of = costs[start : start + 6], owner[start : start + 6]
        assert set(of) == set(range(ranks)), "a rank has no row of a mini-batch"
        assert imbalance(batch, of, ranks) == pytest.approx(imbalance(batch, assign(batch, ranks), ranks))
    # No mini-batch is further from even than its costliest row, and the next one starts with the least loaded rank.
    loads = [sum(c for c, r in zip(costs, owner, strict=True) if r == rank) for rank in range(ranks)]
    most = sum(max(costs[start : start + 6]) for start in range(0, 24, 6))
    assert max(loads) - min(loads) <= most


def test_equal_loads_are_broken_by_what_came_before():
    """Three rows on two ranks: who has had more so far does not get the longest again."""
    assert assign([5.0, 3.0, 2.0], 2) == [0, 1, 1]
    assert assign([5.0, 3.0, 2.0], 2, [7.0, 6.0]) == [1, 0, 0]


@pytest.mark.parametrize(("size", "sharing"), [(1, 1), (2, 1), (3, 1), (2, 2), (4, 2)])
def test_rows_move_once_whole_and_evenly(size, sharing):
    """Every row arrives on one rank with all it had; each mini-batch is spread over the groups of ranks."""
    from toy import record_rollout, share, toy_config

    config = toy_config("grpo", batch_size=24, mini_batch=12)
    whole = record_rollout(config, 3)
    spans: list[int] = []

    def work(world):
        exchange = world.exchange

        def counted(parts):
            if world.rank == 0:
                spans.append(sum(len(part["totals"]) for part in parts))
            return exchange(parts)

        world.exchange = counted
        mine = share(whole, config, world.rank, world.size)
        return balance(mine, config.mini_batch, world, lambda n: float(n), sharing)

    parts = on_ranks(size, work)
    assert len(spans) == (size > 1), "rows travel once"
    where = whole.number.argsort()
    seen = []
    for part in parts:
        assert part.number.tolist() == sorted(part.number.tolist()) or size == 1
        for name, x in tensors(part).items():
            expected = getattr(whole, name)[where[part.number]]
            if x.ndim == 2:
                assert not expected[:, x.shape[1] :].any()
                expected = expected[:, : x.shape[1]]
            assert torch.equal(x, expected), name
        seen += part.number.tolist()
    assert sorted(seen) == list(range(24))
    for k in range(2):
        loads = [
            sum(int(n) for p in parts[g : g + sharing] for n in p.totals[p.number // 12 == k])
            for g in range(0, size, sharing)
        ]
        assert max(loads) * len(loads) / sum(loads) < 1.1, loads
    counts = [len(p) for p in parts]
    assert all(max(counts[g : g + sharing]) - min(counts[g : g + sharing]) <= 1 for g in range(0, size, sharing))


def test_every_tensor_of_a_rollout_travels():
    from toy import record_rollout, toy_config

    rollout = record_rollout(toy_config("vapo"), 0)
    again = make_rows(tensors(rollout))
    assert isinstance(again, Rollout) and tensors(again).keys() == tensors(rollout).keys()
