"""Length-adaptive GAE: short and long responses in one rollout, and slips that show only some words later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from minivapo.interfaces import Metrics, Outputs, Problem, Rollout
from minivapo.local import LocalEngine
from minivapo.study.oracle import OracleCritic
from minivapo.study.sweeps.machinery import Sweep, last_quarter
from minivapo.study.sweeps.rows_of_locks import BASE, CRITIC, constants
from minivapo.tasks.locks import PICTURES, Locks, read


class Halves(Locks):
    """Four locks. Half the problems are terse and checked at once, the others have 8 neutral words and a late check.

    Each kind has pictures of its own, so that nothing learned on one helps the other.
    """

    def __init__(self, delay: int) -> None:
        super().__init__(name=f"locks-halves-{delay}")
        self.delay = delay

    def make(self, rng: np.random.Generator) -> Problem:
        """Of either kind."""
        long = bool(rng.integers(2))
        pictures = [PICTURES[2 * i + long] for i in rng.integers(len(PICTURES) // 2, size=4)]
        return self.problem(8 * long, self.delay * long, pictures)


class LateHalves(Halves):
    """The same for a critic that sees a key only at its check."""

    def pending(self, problem: Problem, tokens: Sequence[str]) -> list[list[str] | None]:
        """Whole lines."""
        talk, delay, pictures = read(problem)
        width, wrong = talk + delay + 4, self.first_error(problem, tokens)
        seen = len(tokens) if wrong is None else (wrong // width + 1) * width
        return [pictures[i // width :] if i < seen else None for i in range(len(tokens))]


class SimulatedCritic(OracleCritic):
    """The true values as seen at each check, with a fixed error that depends on the last two tokens."""

    def __init__(self, task: Locks, tokenizer: object, seed: int, deviation: float = 0.05) -> None:
        super().__init__(task, tokenizer)
        generator = torch.Generator().manual_seed(seed)
        self.error = deviation * torch.randn(256, 256, generator=generator)

    def forward(self, rollout: Rollout) -> Outputs:
        """Values [rows, time]."""
        values = super().forward(rollout)["values"]
        before = torch.nn.functional.pad(rollout.tokens, (2, 0))[:, :-2] % 256
        last = torch.nn.functional.pad(rollout.tokens, (1, 0))[:, :-1] % 256
        values = values + self.error[before, last]
        return {"values": values, "scores": values}


def simulated(engine: LocalEngine, task: Any, seed: int) -> SimulatedCritic:
    """One for a run."""
    return SimulatedCritic(LateHalves(task.delay), engine.tokenizer, seed)


def watch_halves(engine: LocalEngine) -> Metrics:
    """Accuracy of the rollout on each kind of problem."""
    rollout = engine.rollout
    assert rollout is not None
    long = torch.tensor([read(p)[0] > 0 for p in rollout.problems])
    right = rollout.correct.double()
    # A rollout of twelve prompts has both kinds but once in two thousand; then the other kind stands for both.
    kinds = {"short": right[~long], "long": right[long]}
    return {name: float((x if len(x) else right).mean()) for name, x in kinds.items()}


def constants_at(delay: float) -> dict[str, Any]:
    """No LM loss, which would hide what the horizon does, and a lower rate, since without it 4e-4 is too much."""
    own = {"alpha": 0.2, "positive_coef": 0.0, "actor_lr": 2e-4, "critic_lr": 4e-4, "steps": 24}
    return constants(4 * (8 + int(delay) + 4) + 1) | own


def measure(lines: list[Metrics]) -> dict[str, float]:
    """The mean of both kinds, and each."""
    short, long = last_quarter(lines, "short"), last_quarter(lines, "long")
    return {"score": (short + long) / 2, "score_short": short, "score_long": long}


HORIZONS: dict[str, dict[str, Any]] = {
    "adaptive": {},
    **{f"horizon {h}": {"length_adaptive": False, "lam": 1 - 1 / h} for h in (2, 8, 24)},
}

LENGTH_ADAPTIVE = Sweep(
    name="length-adaptive",
    technique="length-adaptive GAE",
    axis="words between a key and its check, in long problems",
    points=(0, 3, 12),
    arms=HORIZONS | {f"{name}, simulated critic": {**x, "critic_init": "policy"} for name, x in HORIZONS.items()},
    task=lambda delay: Halves(int(delay)),
    constants=constants_at,
    measure=measure,
    unit="accuracy, mean of short and long problems",
    matters=(
        "It matters where slips show late in long responses, since a short horizon cannot carry the verdict back; "
        "and where lengths differ so much that no fixed horizon fits all."
    ),
    prediction=(
        "A horizon shorter than a third of the delay cannot carry a late check back to its key: horizon 2 fails on "
        "long problems from a delay of 12 on. A horizon of 24 makes every token of a short response answer for all of "
        "it. The adaptive one is near the best fixed one for each kind, and better than any for both."
    ),
    watch=lambda task: watch_halves,
    critics={f"{name}, simulated critic": simulated for name in HORIZONS},
    base=BASE,
    critic=CRITIC,
    rates=(5e-5, 1e-4, 4e-4),
)
