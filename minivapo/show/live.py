"""What a person sees while a run trains: a compact view in a terminal, plain lines elsewhere, other loggers.

with Live(config, run) as live:
    live.phase("loading the model")
    for metrics in run_training(...):
        live.update(metrics)

watch(Path("runs/chain-vapo-0"))        # the same view, from another terminal, by the run's files
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from minivapo.interfaces import UserError

BLOCKS = "▁▂▃▄▅▆▇█"

ROWS: tuple[tuple[str, str, str], ...] = (
    ("eval/accuracy", "held-out accuracy", "%"),
    ("reward/accuracy", "training accuracy", "%"),
    ("response/length", "response length", "tokens"),
    ("response/truncated", "truncated", "%"),
    ("policy/entropy", "entropy", "nats"),
    ("value/explained_variance", "explained variance", ""),
    ("actor/clip_high", "clipped above", "%"),
)
"""(metric, label, unit): the handful of numbers that matter; "%" shows a share as per cent."""


# ---------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------


def sparkline(values: Sequence[float], width: int = 28) -> str:
    """A line of blocks from the lowest to the highest value, at most `width` wide; "" for no finite value."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return ""
    largest = max(map(abs, values))
    values = [v / largest / 4 if largest else v for v in values]  # sums and differences of any floats stay finite
    if len(values) > width:  # means of equal parts
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(high), abs(low), 1e-300):
        return BLOCKS[3] * len(values)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((v - low) / (high - low) * top)] for v in values)


def printable(text: str) -> str:
    """Text without control characters: a response must not steer the terminal."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def duration(seconds: float) -> str:
    """Seconds as "42 s", "7 min" or "3 h 20 min"."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def figure(value: float | None, unit: str = "") -> str:
    """A number with its unit, short."""
    if value is None or not math.isfinite(value):
        return "-"
    return (
        f"{100 * value:.1f} %"
        if unit == "%"
        else f"{value:.3g} {unit}".strip()
        if abs(value) < 100
        else f"{value:.0f} {unit}"
    )


def sample_text(sample: Mapping[str, Any]) -> str:
    """The tokens of a response as one printable string."""
    tokens = [printable(str(t)) for t in sample.get("tokens", [])]
    return ("" if any(" " in t for t in tokens) else " ").join(tokens)


# ---------------------------------------------------------------------------------------------------------
# Where a run stands
# ---------------------------------------------------------------------------------------------------------


class Board:
    """The lines of a run so far, what it does now, and how long it still takes.

    Args:
        settings: fields of the run's `minivapo.vapo.Config`; missing ones only make the view poorer.
        now: the clock, in seconds.
    """

    def __init__(self, settings: Mapping[str, Any], now: Callable[[], float] = time.monotonic) -> None:
        self.settings, self.now = settings, now
        self.started = self.changed = now()
        self.lines: list[dict[str, Any]] = []
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
            self.lines.pop()
        elapsed = self.now() - self.changed
        self.lines.append(dict(metrics))
        self.changed, self.said = self.now(), None
        kind = ("evaluation", "pretraining", "step")[place[0]]
        took = metrics.get("time/total", elapsed if timed else None)
        if isinstance(took, int | float):
            self.seconds[kind] = [*self.seconds[kind][-9:], float(took)]

    @staticmethod
    def place(metrics: Mapping[str, Any]) -> tuple[int, int]:
        """Order of a line in its run: evaluation of the base, then pretraining rollouts, then steps."""
        if "pretrain/rollout" in metrics:
            return 1, int(metrics["pretrain/rollout"])
        step = int(metrics.get("step", 0))
        return (2, step) if step else (0, 0)

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


# ---------------------------------------------------------------------------------------------------------
# The two views
# ---------------------------------------------------------------------------------------------------------


def plain_line(board: Board) -> str:
    """The newest line as one line of ASCII."""
    line = board.lines[-1]
    kind, at = board.place(line)
    get = line.get
    reward, values, _ = board.pretraining()
    if kind == 0:
        parts = ["base policy", f"held-out accuracy {figure(get('eval/accuracy'), '%')}"]
        parts.append(f"length {figure(get('eval/length'))}")
    elif "pretrain/reward_model_loss" in line:
        parts = [f"reward model {at}/{reward}", f"loss {figure(get('pretrain/reward_model_loss'))}"]
    elif kind == 1:
        parts = [f"value-pretraining {at - reward}/{values}", f"loss {figure(get('pretrain/value_loss'))}"]
        parts.append(f"explained variance {figure(get('value/explained_variance'))}")
    else:
        width = len(str(board.steps or 0))
        parts = [f"step {at:>{width}}/{board.steps or '?'}"]
        names = (
            ("reward/accuracy", "accuracy", "%"),
            ("response/length", "length", ""),
            ("policy/entropy", "entropy", ""),
            ("value/explained_variance", "ev", ""),
            ("actor/clip_high", "clipped", "%"),
        )
        parts += [f"{label} {figure(get(name), unit)}" for name, label, unit in names if name in line]
        if "time/total" in line:
            parts.append(duration(line["time/total"]))
        if "eval/accuracy" in line:
            parts.append(f"HELD-OUT {figure(line['eval/accuracy'], '%')}")
    left = board.left()
    if not board.finished and math.isfinite(left):
        parts.append(f"about {duration(left)} left")
    return " | ".join(parts)


def plain_sample(sample: Mapping[str, Any], width: int = 400) -> str:
    """A response as one line."""
    verdict = "right" if sample.get("correct") else "wrong"
    text = f"{printable(str(sample.get('prompt', '')))} -> {sample_text(sample)}"
    return f"    {verdict}: {text if len(text) <= width else text[: width - 3] + '...'}"


def view(board: Board, title: str, width: int = 100) -> RenderableType:
    """The compact view of a terminal."""
    bar_line = Table.grid(expand=True, padding=(0, 1))
    bar_line.add_column(ratio=1)
    bar_line.add_column(justify="right", no_wrap=True)
    reward, values, _ = board.pretraining()
    total = 1 + reward + values + (board.steps or 0)
    kind, at = board.place(board.lines[-1]) if board.lines else (0, -1)
    done = {0: 1 + at, 1: 1 + at, 2: 1 + reward + values + at}[kind]
    left = board.left()
    passed = duration(board.now() - board.started)
    clock = f"{passed}" + (f", about {duration(left)} left" if math.isfinite(left) and not board.finished else "")
    bar = ProgressBar(total=total, completed=done, pulse=not board.lines and not board.finished)
    bar_line.add_row(bar, Text(clock, style="dim"))

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(no_wrap=True, style="dim")
    for name, label, unit in ROWS:
        found = board.values(name)
        if found:
            trend = sparkline(found, max(8, min(40, width - 62)))
            start = f"from {figure(found[0], unit)}" if len(found) > 1 else ""
            table.add_row(label, Text(figure(found[-1], unit), style="bold"), trend, start)
    if not table.row_count:
        table.add_row(Text("the first numbers come after the evaluation of the base policy", style="dim"))
    parts: list[RenderableType] = [Text(board.phase(), style="bold"), bar_line, table]
    if board.sample:
        parts.append(sample_view(board.sample, 3 * max(width - 4, 20)))
    return Panel(Group(*parts), title=Text(title), title_align="left", border_style="dim", width=width)


def sample_view(sample: Mapping[str, Any], size: int) -> Text:
    """A response in about `size` characters, with its verdict and the token where it first went wrong."""
    right = bool(sample.get("correct"))
    text = Text(overflow="fold")
    text.append(f"step {sample.get('step', '?')} ", style="dim")
    text.append("right " if right else "wrong ", style="bold green" if right else "bold red")
    prompt = printable(str(sample.get("prompt", "")))
    text.append(prompt if len(prompt) <= size // 2 else prompt[: size // 2] + "…", style="dim")
    text.append(" → ")
    tokens = [printable(str(t)) for t in sample.get("tokens", [])]
    space = "" if any(" " in t for t in tokens) else " "
    error = sample.get("first_error")
    start = 0
    if isinstance(error, int) and sum(len(t) + 1 for t in tokens[:error]) > size // 3:
        start = max(error - 8, 0)
        text.append("… ")
    for i in range(start, len(tokens)):
        if len(text) > size:
            text.append("…")
            break
        text.append(tokens[i], style="bold red underline" if i == error else "")
        text.append(space)
    return text


class Live:
    """Shows a run while it trains: a view that redraws itself in a terminal, one line a step elsewhere.

    Args:
        config: the run's `minivapo.vapo.Config`, or its fields as a dictionary.
        run: the run's folder, for its name, its latest responses, and the lines of a run that is resumed.
        tensorboard, wandb: also log there.
        console: where to show it; standard output if not given.
        plain: lines instead of the view; by default where the console is no terminal.
        doing: what happens before the first line, say "loading the model"; `phase(None)` ends it.

    Raises:
        UserError: a logger that was asked for is not installed.
    """

    def __init__(
        self,
        config: Any = None,
        run: Path | None = None,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        console: Console | None = None,
        plain: bool | None = None,
        doing: str | None = None,
    ) -> None:
        settings = settings_of(config)
        self.run = Path(run) if run else None
        self.console = console or Console()
        # the view needs block characters
        utf8 = (self.console.encoding or "").lower().replace("-", "").startswith("utf")
        self.plain = plain if plain is not None else not (self.console.is_terminal and utf8)
        self.board = Board(settings)
        self.board.say(doing)
        self.title = f"MiniVAPO {printable(self.run.name) if self.run else ''}".strip()
        self.display: RichLive | None = None
        self.shown_phase = ""
        self.loggers: list[Logger] = []
        if tensorboard:
            self.loggers.append(TensorBoard(self.folder("tensorboard")))
        if wandb:
            self.loggers.append(WeightsAndBiases(self.folder("wandb"), settings))

    def folder(self, flag: str) -> Path:
        """The run's folder, which a logger needs."""
        if self.run is None:
            raise UserError(f"--{flag} writes into the run folder: give one with --run.")
        return self.run

    def __enter__(self) -> Live:
        """Starts showing."""
        if self.run and (self.run / "metrics.jsonl").exists():  # a resumed run: its trends go on
            for line in Tail(self.run / "metrics.jsonl").read()[0]:
                self.board.add(line, timed=False)
        self.board.started = self.board.changed = self.board.now()
        if not self.plain:
            self.display = RichLive(
                get_renderable=self.render, console=self.console, refresh_per_second=4, transient=False
            )
            self.display.start(refresh=True)
        self.announce()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the last view on the screen and closes the loggers."""
        if error is not None and not self.board.finished:
            self.board.say("stopped")
        if self.display:
            self.display.stop()
        for logger in self.loggers:
            logger.close()

    def render(self) -> RenderableType:
        """The view of this moment."""
        return view(self.board, self.title, min(self.console.width, 110))

    def phase(self, text: str | None) -> None:
        """Shows what the run does before its first line, say "loading the model"; None: what follows from its lines."""
        self.board.say(text)
        self.announce()

    def announce(self) -> None:
        """In plain mode, one line whenever a new part of the run begins."""
        text = self.board.phase().partition(", ")[0]  # without its counter
        if self.plain and text not in (self.shown_phase, "finished"):
            self.line(f"[{text}]")
        self.shown_phase = text

    def line(self, text: str) -> None:
        """One plain line, whatever the encoding of the output."""
        file = self.console.file
        encoding = getattr(file, "encoding", None) or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=file, flush=True)

    def update(
        self,
        metrics: Mapping[str, Any],
        total_steps: int | None = None,
        samples: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Shows a new line of metrics.

        Args:
            metrics: what `minivapo.vapo.train` yielded.
            total_steps: steps to train, if the configuration was not given.
            samples: responses, as in samples.jsonl; if not given, the newest of the run's folder.
        """
        if total_steps is not None:
            self.board.settings = {**self.board.settings, "steps": total_steps}
        self.board.add(metrics)
        step = self.board.step
        if samples is None and self.run and step:
            samples = newest_samples(self.run)
        if samples:
            self.board.sample = samples[step % len(samples)]
        for logger in self.loggers:
            logger.write(metrics)
        if self.plain:
            self.line(plain_line(self.board))
            every = max(1, (self.board.steps or 10) // 5)
            if self.board.sample and step and (step % every == 0 or step == 1):
                self.line(plain_sample(self.board.sample))
            self.announce()


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration, a dataclass or a dictionary already."""
    return dict(config or {}) if config is None or isinstance(config, Mapping) else dataclasses.asdict(config)


# ---------------------------------------------------------------------------------------------------------
# Following a run by its files
# ---------------------------------------------------------------------------------------------------------


class Tail:
    """Reads a growing JSON-lines file; notices when it was cut or rewritten, as on resume.

    Args:
        path: the file; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0
        self.last = b""  # the line that ends at offset: if it changed, the file was rewritten

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """New complete lines, and whether they start over from the beginning of the file."""
        try:
            with self.path.open("rb") as file:
                again = self.offset > 0 and not self.unchanged(file)
                if again:
                    self.offset, self.last = 0, b""
                file.seek(self.offset)
                text = file.read()
        except FileNotFoundError:
            again = self.offset > 0
            self.offset, self.last = 0, b""
            return [], again
        rows = []
        for line in text.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break  # half written: next time
            self.offset += len(line)
            self.last = line
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows, again

    def unchanged(self, file: Any) -> bool:
        """Whether the last line read still stands where it stood."""
        file.seek(self.offset - len(self.last))
        return file.read(len(self.last)) == self.last


def newest_samples(run: Path, reach: int = 400_000) -> list[dict[str, Any]]:
    """Responses of the newest step in samples.jsonl, looking at the file's last `reach` bytes only."""
    try:
        with (run / "samples.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - reach, 0))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    rows: list[dict[str, Any]] = []
    for line in reversed(lines[:-1]):
        try:
            row = json.loads(line)
        except ValueError:  # the first one may have lost its beginning
            continue
        if not isinstance(row, dict) or (rows and row.get("step") != rows[0].get("step")):
            break
        rows.append(row)
    return rows[::-1]


def watch(
    run: Path, follow: bool = True, *, console: Console | None = None, plain: bool | None = None, poll: float = 0.5
) -> int:
    """Shows a run that trains elsewhere, by its folder, until it has finished or Ctrl-C is pressed.

    Args:
        run: the run's folder, on this disk or a mounted one.
        follow: wait for more; if False, show what there is and return.
        console: where to show it; standard output if not given.
        plain: lines instead of the view.
        poll: seconds between looks at the file.

    Returns:
        Lines seen.

    Raises:
        UserError: there is no run folder, or nothing in it to show and `follow` is off.
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not a run folder: it has no config.json. Give the folder of `minivapo train --run`.")
    try:
        meta = json.loads((run / "config.json").read_text())
        settings = meta.get("config", {})
    except (ValueError, AttributeError) as error:
        raise UserError(f"{run / 'config.json'} is not a run's configuration ({error}).") from error
    live = Live(settings, console=console, plain=plain)
    live.title, live.run = f"watching {printable(run.resolve().name)}", None
    live.board.say("waiting for the first line" if follow else None)
    tail = Tail(run / "metrics.jsonl")
    seen = 0
    with live:
        first = True
        try:
            while True:
                rows, again = tail.read()
                if again:
                    live.board.lines.clear()
                    if live.plain:
                        live.line("[the run was resumed; its lines again]")
                for row in rows:
                    live.board.add(row, timed=not first)
                    if live.plain:
                        live.line(plain_line(live.board))
                seen += len(rows)
                if rows:
                    samples = newest_samples(run)
                    live.board.sample = samples[live.board.step % len(samples)] if samples else None
                first = first and not rows
                if live.board.finished or not follow:
                    break
                if not rows and live.board.lines:
                    quiet_for(live.board)
                time.sleep(poll)
        except KeyboardInterrupt:
            live.board.say("no longer watched; the run goes on")
    if not seen and not follow:
        raise UserError(f"{run / 'metrics.jsonl'} has no complete line yet.")
    return seen


def quiet_for(board: Board) -> None:
    """Says so when a line takes several times as long as those before it: the run may have stopped."""
    board.say(None)
    usual = max((sum(v) / len(v) for v in board.seconds.values() if v), default=math.inf)
    quiet = board.now() - board.changed
    if quiet > max(60.0, 5 * usual):
        board.say(f"{board.phase()}: no new line for {duration(quiet)}; has it stopped?")


# ---------------------------------------------------------------------------------------------------------
# Other loggers
# ---------------------------------------------------------------------------------------------------------


class Logger(Protocol):
    """Somewhere else to write metrics."""

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Writes one line."""
        ...

    def close(self) -> None:
        """Finishes."""
        ...


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line but its step."""
    return {
        k: float(v)
        for k, v in metrics.items()
        if k != "step" and isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
    }


class TensorBoard:
    """Writes event files into RUN/tensorboard. Pretraining is drawn over its own rollouts, under `pretraining/`.

    Raises:
        UserError: tensorboard is not installed.
    """

    def __init__(self, run: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("--tensorboard needs TensorBoard: pip install 'minivapo[logging]'.") from error
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
        UserError: wandb is not installed.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("--wandb needs Weights & Biases: pip install 'minivapo[logging]'.") from error
        run.mkdir(parents=True, exist_ok=True)
        config = run / "config.json"
        content = config.read_bytes() if config.exists() else repr(sorted(settings.items())).encode()
        key = hashlib.sha256(str(run.resolve()).encode() + content).hexdigest()[:12]
        try:
            self.session = wandb.init(
                project="minivapo", name=run.name, id=key, resume="allow", config=dict(settings), dir=str(run)
            )
        except wandb.errors.Error as error:
            raise UserError(f"--wandb: {error}. Log in with `wandb login`, or set WANDB_MODE=offline.") from error
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
