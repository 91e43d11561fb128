"""Does a critic see? Its values on fresh responses, beside the exact ones, and what they do at the first error.

A value model is of use where it tells a response that still stands from one that is lost. On a task whose values
can be computed (`exact_values`) three numbers say so, each against the oracle of `minivapo.study.oracle`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from minivapo.interfaces import Engine, Rollout
from minivapo.measure import explained_variance
from minivapo.study.oracle import OracleCritic
from minivapo.tasks.embedded import EmbeddedTask
from minivapo.vapo import Config, collect

AFTER = 3
"""Tokens after the first error within which its value should have fallen."""


@dataclass(frozen=True)
class Sight:
    """What a critic and the oracle see in the same fresh responses."""

    explained_variance: float
    """Of the critic."""
    explained_variance_oracle: float
    """Of the oracle: what can be known."""
    fall: float
    """Mean fall of V from right before the first error to `AFTER` tokens later, in reward units."""
    fall_oracle: float
    """The same of the oracle."""
    errors: int
    """Responses with an error that early enough."""

    @property
    def ev_ratio(self) -> float:
        """The critic's explained variance as a share of the oracle's."""
        return self.explained_variance / self.explained_variance_oracle

    @property
    def fall_ratio(self) -> float:
        """The critic's fall at the first error as a share of the oracle's."""
        return self.fall / self.fall_oracle


def measure_sight(config: Config, task: EmbeddedTask, engine: Engine, responses: int = 2048) -> Sight:
    """Samples fresh responses of the engine's policy and compares its critic with the oracle on them.

    The oracle counts on as many responses of their own: in those that it counted it would look too good.

    Args:
        config: lengths and seed are read.
        task: one with `exact_values`.
        engine: its policy samples, its critic is looked at; nothing is trained.
        responses: for each of counting and looking.
    """
    assert engine.critic is not None
    oracle = OracleCritic(task, engine.tokenizer, memory=1.0)
    alone = dataclasses.replace(config, group_size=1, batch_size=responses, mini_batch=responses, dynamic_sampling=0)
    oracle.forward(collect(alone, task, engine, "sight-count"))
    rollout = collect(alone, task, engine, "sight-look")
    rollout.values = engine.critic.forward(rollout)["values"]
    seen = explained_variance(rollout, engine.world)["value/explained_variance"]
    true = dataclasses.replace(rollout, values=oracle.values(rollout))
    possible = explained_variance(true, engine.world)["value/explained_variance"]
    falls = torch.tensor(fall_at_error(rollout, task, engine))
    falls_true = torch.tensor(fall_at_error(true, task, engine))
    return Sight(seen, possible, float(falls.mean()), float(falls_true.mean()), len(falls))


def fall_at_error(rollout: Rollout, task: EmbeddedTask, engine: Engine) -> list[float]:
    """V before the first error minus V `AFTER` tokens later, for each response that goes on for so long."""
    assert rollout.values is not None
    falls: list[float] = []
    for row in range(len(rollout)):
        tokens, values = response(rollout.tokens, rollout, row), response(rollout.values, rollout, row)
        words = engine.tokenizer.convert_ids_to_tokens(tokens.tolist())
        error = task.first_error(rollout.problems[row], words)
        if error is not None and error + AFTER < len(words):
            falls.append(float(values[error] - values[error + AFTER]))
    return falls


def response(x: Tensor, rollout: Rollout, row: int) -> Tensor:
    """The part of a row [time] that is the response."""
    end = int(rollout.totals[row])
    return x[row, end - int(rollout.lengths[row]) : end]
