"""Equal work for every rank: which rank gets which rows, once per rollout, and how its rows become micro-batches.

All ranks take part in every pass, so each pass is as slow as the rank that has most to do. Rows differ in length by
orders of magnitude. So they are dealt out by cost, for each mini-batch on its own; then they stay where they are.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minivapo.interfaces import Rollout, join
from scaled.world import DistributedWorld


def assign(costs: Sequence[float], ranks: int, before: Sequence[float] | None = None) -> list[int]:
    """A rank for each row, by longest processing time first: the costliest row goes to the least loaded rank.

    Every rank gets a row as long as there are as many rows as ranks and costs are positive.

    Args:
        costs: work of each row, in any unit.
        ranks: their number.
        before: what each rank has to do apart from these rows; it decides between ranks that are equally loaded.
    """
    earlier = before or [0.0] * ranks
    loads = [(0.0, earlier[rank], rank) for rank in range(ranks)]
    heapq.heapify(loads)
    owner = [0] * len(costs)
    for row in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, other, rank = heapq.heappop(loads)
        owner[row] = rank
        heapq.heappush(loads, (load + costs[row], other, rank))
    return owner


def deal(costs: Sequence[float], mini_batch: int, ranks: int) -> list[int]:
    """A rank for each row, such that every mini-batch is spread evenly over the ranks, and so is the whole.

    Args:
        costs: work of each row of the rollout, in any unit, by number.
        mini_batch: consecutive rows that make a mini-batch.
        ranks: their number.
    """
    owner: list[int] = []
    loads = [0.0] * ranks
    for start in range(0, len(costs), mini_batch):
        batch = costs[start : start + mini_batch]
        ranks_of_batch = assign(batch, ranks, loads)
        for cost, rank in zip(batch, ranks_of_batch, strict=True):
            loads[rank] += cost
        owner += ranks_of_batch
    return owner


def imbalance(costs: Sequence[float], owner: Sequence[int], ranks: int) -> float:
    """Cost of the most loaded rank over the mean: 1 is perfect, and 1 − 1/x of the time is lost waiting."""
    loads = [0.0] * ranks
    for cost, rank in zip(costs, owner, strict=True):
        loads[rank] += cost
    return max(loads) * ranks / max(sum(loads), 1e-30)


def cut(totals: Sequence[int], budget: int) -> list[list[int]]:
    """Rows into micro-batches of at most `budget` tokens, first-fit decreasing; a longer row stands alone."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(totals)), key=lambda i: (-totals[i], i)):
        place = next((b for b, free in enumerate(room) if free >= totals[row]), None)
        if place is None:
            bins.append([row])
            room.append(max(budget - totals[row], 0))
        else:
            bins[place].append(row)
            room[place] -= totals[row]
    return bins


def balance(
    rollout: Rollout,
    mini_batch: int,
    world: DistributedWorld,
    cost: Callable[[int], float],
    sharing: int = 1,
) -> Rollout:
    """Moves the rows of all ranks so that every mini-batch is equal work for all ranks. Collective.

    Args:
        rollout: this rank's rows; whatever is filled in travels with them.
        mini_batch: rows of a mini-batch, over all ranks: those whose `number` is in the same multiple of it.
        world: the ranks.
        cost: work of a row of so many tokens.
        sharing: neighbouring ranks that work on each row together; its rows are dealt to them in turn.

    Returns:
        The rows that this rank holds from now on, in the order of their numbers.
    """
    if world.size == 1:
        return rollout
    numbers = torch.cat(world.gather(rollout.number)).tolist()
    totals = torch.cat(world.gather(rollout.totals)).tolist()
    costs = [0.0] * len(numbers)
    for number, total in zip(numbers, totals, strict=True):
        costs[number] = cost(total)
    groups = deal(costs, mini_batch, world.size // sharing)
    turns = [0] * (world.size // sharing)
    owner = []
    for group in groups:
        owner.append(group * sharing + turns[group] % sharing)
        turns[group] += 1
    return move(rollout, [owner[number] for number in rollout.number.tolist()], world)


def move(rollout: Rollout, owner: Sequence[int], world: DistributedWorld) -> Rollout:
    """Sends each of this rank's rows to its owner, and takes in what the other ranks send. Collective."""
    to = torch.tensor(owner, dtype=torch.long)
    outgoing = [tensors(rollout.rows((to == rank).nonzero()[:, 0])) for rank in range(world.size)]
    rows = join([make_rows(part) for part in world.exchange(outgoing)], pad=0)  # padding is never read
    return rows.rows(torch.argsort(rows.number))


def tensors(rows: Rollout) -> dict[str, Tensor]:
    """The tensors of a rollout by name."""
    parts = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)}
    return {k: x for k, x in parts.items() if isinstance(x, Tensor)}


def make_rows(parts: dict[str, Any]) -> Rollout:
    """The rollout of which `tensors` gave the tensors."""
    return Rollout(**parts)
