"""Where a run stands, by its lines: what it does now, its latest numbers, and how long it still takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minivapo.files import parse_object
from minivapo.show.thin import Thinned


class Board:
    """The lines of a run so far, what it does now, and how long it still takes.

    Args:
        settings: fields of the run's `minivapo.vapo.Config`; missing ones only make the view poorer.
        now: the clock, in seconds.
    """

    def __init__(self, settings: Mapping[str, Any], now: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.now = settings, now
        self.started = self.changed = now()
        self.history = Thinned()
        self.seconds: dict[str, list[float]] = {"evaluation": [], "pretraining": [], "step": []}
        self.sample: Mapping[str, Any] | None = None
        self.said: str | None = None

    def say(self, text: str | None) -> None:
        """What the run does now, in place of what its lines tell."""
        self.said = text

    def add(self, metrics: Mapping[str, Any], timed: bool = True) -> None:
        """Takes in a line; a resumed run repeats some, and those that it replaces are forgotten.

        Args:
            metrics: the line.
            timed: whether it arrived as it happened, so that the time since the last one is the time it took.
        """
        place = self.place(metrics)
        while self.lines and self.place(self.lines[-1]) >= place:
            self.history.pop()
        elapsed = self.now() - self.changed
        self.history.append(dict(metrics))
        self.changed, self.said = self.now(), None
        kind = ("evaluation", "pretraining", "step")[place[0]]
        took = metrics.get("time/total", elapsed if timed else None)
        if isinstance(took, int | float):
            self.seconds[kind] = [*self.seconds[kind][-9:], float(took)]

    def take_up(self, path: Path) -> None:
        """Takes in the lines of a run that goes on; of very many, those that would be dropped again are not parsed."""
        most = self.history.most
        with path.open("rb") as file:
            total = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
            every = 1 << max((total // most).bit_length() - 1, 0)  # of all lines at least as many are dropped
            file.seek(0)
            for number, text in enumerate(file):
                inside = most < number < total - most  # paces come from the newest lines, of each kind
                if inside and self.history.count % every and b'"eval/' not in text:
                    self.history.append({})
                elif row := parse_object(text):
                    self.add(row, timed=False)

    @staticmethod
    def place(metrics: Mapping[str, Any]) -> tuple[int, int]:
        """Order of a line in its run: evaluation of the base, then pretraining rollouts, then steps."""
        if "pretrain/rollout" in metrics:
            return 1, int(metrics["pretrain/rollout"])
        step = int(metrics.get("step", 0))
        return (2, step) if step else (0, 0)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines so far; of very many, some evenly, and the newest."""
        return self.history.lines

    @property
    def step(self) -> int:
        """Steps trained."""
        return int(self.lines[-1].get("step", 0)) if self.lines else 0

    @property
    def steps(self) -> int | None:
        """Steps to train, where that is known."""
        return self.settings.get("steps")

    @property
    def finished(self) -> bool:
        """Whether the last line of the run is here."""
        return bool(self.lines) and self.steps is not None and self.step >= self.steps

    def pretraining(self) -> tuple[int, int, bool]:
        """Rollouts of the reward model and, at most, of value-pretraining; and whether there is any of them."""
        get = self.settings.get
        if get("advantage", "gae") != "gae":
            return 0, 0, False
        reward = get("reward_model_steps", 0) if get("critic_init") == "reward-model" else 0
        values = get("value_pretrain_steps", 0)
        return reward, values, reward + values > 0

    def phase(self) -> str:
        """What the run does now, in words."""
        if self.said:
            return self.said
        if not self.lines:
            return "evaluating the base policy"
        if self.finished:
            return "finished"
        kind, at = self.place(self.lines[-1])
        reward, values, any_ = self.pretraining()
        if kind == 2 or not any_ or (kind == 1 and at >= reward + values):
            of = f" of {self.steps}" if self.steps else ""
            return f"training, step {self.step + 1}{of}"
        if at < reward:
            return f"training the reward model, rollout {at + 1} of {reward}"
        return f"value-pretraining, rollout {at - reward + 1} of at most {values}"

    def left(self) -> float:
        """Seconds still to go, by the pace so far; infinity while nothing is known."""
        if self.finished:
            return 0.0
        if not self.lines or self.steps is None:
            return math.inf
        pace = {k: sum(v) / len(v) for k, v in self.seconds.items() if v}
        step = pace.get("step", pace.get("pretraining", math.inf))
        kind, at = self.place(self.lines[-1])
        reward, values, _ = self.pretraining()
        rollouts = max(reward + values - at, 0) if kind < 2 else 0
        seconds = (self.steps - self.step) * step + pace.get("evaluation", 0.0)
        if rollouts:
            seconds += rollouts * pace.get("pretraining", math.inf)
        return max(seconds - (self.now() - self.changed), 0.0)

    def values(self, name: str) -> list[float]:
        """The finite values of a metric, in order."""
        found = [line[name] for line in self.lines if isinstance(line.get(name), int | float)]
        return [float(v) for v in found if math.isfinite(v)]
