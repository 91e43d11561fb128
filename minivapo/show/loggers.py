"""Other loggers: TensorBoard and Weights & Biases. None of them ends a run: one that fails says so and is left alone.

Their packages are checked before a run folder is written (`check_installed`); what happens later is the logger's
trouble alone (`Guarded`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from minivapo.errors import UserError, install


class Logger(Protocol):
    """Somewhere else to write metrics."""

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Writes one line."""
        ...

    def close(self) -> None:
        """Finishes."""
        ...


def check_installed(tensorboard: bool = False, wandb: bool = False) -> None:
    """Refuses a logger whose package is not there.

    Args:
        tensorboard, wandb: whether it is asked for.

    Raises:
        UserError: naming the flag and what to install.
    """
    asked = (
        (tensorboard, "--tensorboard needs TensorBoard", "torch.utils.tensorboard"),
        (wandb, "--wandb needs Weights & Biases", "wandb"),
    )
    for wanted, needs, module in asked:
        if wanted:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UserError(f"{needs}: {install('logging')}.") from error


def make_loggers(
    run: Path | None, settings: Mapping[str, Any], tensorboard: bool, wandb: bool, say: Callable[[str], None]
) -> list[Logger]:
    """The loggers that were asked for, each guarded.

    Args:
        run: the run's folder, which each of them needs.
        settings: the fields of the run's configuration.
        tensorboard, wandb: whether it is asked for.
        say: called with one line when a logger fails.

    Raises:
        UserError: a package is not installed, or there is no run folder.
    """
    if not (tensorboard or wandb):
        return []
    if run is None:
        flag = "tensorboard" if tensorboard else "wandb"
        raise UserError(f"--{flag} writes into the run folder: give one with --run.")
    check_installed(tensorboard, wandb)
    found: list[Logger] = []
    if tensorboard:
        found.append(Guarded("TensorBoard", lambda: TensorBoard(run), say))
    if wandb:
        found.append(Guarded("Weights & Biases", lambda: WeightsAndBiases(run, settings), say))
    return found


class Guarded:
    """A logger whose first failure is said, and which is not called again after it.

    Args:
        name: what the message calls it.
        make: starts the logger; may fail as well.
        say: called once with the message.
    """

    def __init__(self, name: str, make: Callable[[], Logger], say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self.logger: Logger | None = None
        with self.guard():
            self.logger = make()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turns any error into one line, and lets go of the logger."""
        try:
            yield
        except Exception as error:  # whatever a third party's network, disk or protocol may bring
            self.logger = None
            what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.say(
                f"{self.name} failed and gets no more lines ({what}). The run goes on; metrics.jsonl has them all."
            )

    def write(self, metrics: Mapping[str, Any]) -> None:
        """See `Logger.write`."""
        if self.logger is not None:
            with self.guard():
                self.logger.write(metrics)

    def close(self) -> None:
        """See `Logger.close`."""
        if self.logger is not None:
            with self.guard():
                self.logger.close()


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line but its step."""
    return {
        k: float(v)
        for k, v in metrics.items()
        if k != "step" and isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    }


class TensorBoard:
    """Writes event files into RUN/tensorboard. Pretraining is drawn over its own rollouts, under `pretraining/`."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"))

    def write(self, metrics: Mapping[str, Any]) -> None:
        """See `Logger.write`."""
        rollout = metrics.get("pretrain/rollout")
        for name, value in numbers_of(metrics).items():
            if rollout is None:
                self.writer.add_scalar(name, value, int(metrics["step"]))
            elif name != "pretrain/rollout":
                self.writer.add_scalar(f"pretraining/{name.removeprefix('pretrain/')}", value, int(rollout))
        self.writer.flush()

    def close(self) -> None:
        """See `Logger.close`."""
        self.writer.close()


class WeightsAndBiases:
    """Logs to Weights & Biases, project `minivapo`; a resumed run goes on under its old id.

    Raises:
        UserError: there is no login.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        run.mkdir(parents=True, exist_ok=True)
        config = run / "config.json"
        content = config.read_bytes() if config.exists() else repr(sorted(settings.items())).encode()
        key = hashlib.sha256(str(run.resolve()).encode() + content).hexdigest()[:12]
        try:
            self.session = wandb.init(
                project="minivapo", name=run.name, id=key, resume="allow", config=dict(settings), dir=str(run)
            )
        except wandb.errors.Error as error:
            raise UserError(f"{error}; log in with `wandb login`, or set WANDB_MODE=offline") from error
        self.session.define_metric("*", step_metric="step")
        self.session.define_metric("pretraining/*", step_metric="pretraining/rollout")

    def write(self, metrics: Mapping[str, Any]) -> None:
        """See `Logger.write`."""
        numbers = numbers_of(metrics)
        if "pretrain/rollout" in numbers:
            numbers = {f"pretraining/{k.removeprefix('pretrain/')}": v for k, v in numbers.items()}
        else:
            numbers["step"] = float(metrics["step"])
        self.session.log(numbers)

    def close(self) -> None:
        """See `Logger.close`."""
        self.session.finish(exit_code=1 if sys.exc_info()[0] else 0)
