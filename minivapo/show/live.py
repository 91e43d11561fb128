"""What a person sees while a run trains: a compact view in a terminal, one line per step elsewhere.

For example::

    with Live(config, run) as live:
        live.phase("loading the model")
        for metrics in run_training(...):
            live.update(metrics)

    watch(Path("runs/chain-vapo-0"))        # the same view, from another terminal, by the run's files
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from minivapo.files import read_object
from minivapo.interfaces import UserError
from minivapo.show.board import Board
from minivapo.show.loggers import Logger, make_loggers
from minivapo.show.notices import about_config, about_metrics
from minivapo.show.tail import BATCH, Tail, newest_samples
from minivapo.show.text import duration, figure, parts_of, printable, sample_text, sparkline

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
        parts += parts_of(line)
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


# ---------------------------------------------------------------------------------------------------------
# A run in this process
# ---------------------------------------------------------------------------------------------------------


class Live:
    """Shows a run while it trains: a view that redraws itself in a terminal, one line per step elsewhere.

    Args:
        config: the run's `minivapo.vapo.Config`, or its fields as a dictionary.
        run: the run's folder, for its name, its latest responses, and the lines of a run that is resumed.
        tensorboard, wandb: also log there.
        console: where to show it; standard output if not given.
        plain: lines instead of the view; by default where the console is no terminal.
        doing: what happens before the first line, say "loading the model"; `phase(None)` ends it.

    Raises:
        UserError: a logger that was asked for is not installed, or has no run folder.
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
        self.told: set[str] = set()
        self.loggers: list[Logger] = make_loggers(self.run, settings, tensorboard, wandb, self.warn)

    def __enter__(self) -> Live:
        """Starts showing."""
        if self.run and (self.run / "metrics.jsonl").exists():  # a resumed run: its trends go on
            self.board.take_up(self.run / "metrics.jsonl")
        self.board.started = self.board.changed = self.board.now()
        if not self.plain:
            display = RichLive(get_renderable=self.render, console=self.console, refresh_per_second=4, transient=False)
            display.start(refresh=True)
            self.display = display
        self.announce()
        self.tell(about_config(self.board.settings))
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

    def tell(self, notices: Sequence[str]) -> None:
        """Warns of what was not said yet."""
        for text in notices:
            if text not in self.told:
                self.warn(f"note: {text}")
        self.told.update(notices)

    def warn(self, text: str) -> None:
        """One line that stays above the view, or between the plain lines."""
        if self.display:
            self.display.console.print(Text(printable(text), style="yellow"))
        else:
            self.line(printable(text))

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
        self.tell(about_metrics(metrics))
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
# A run elsewhere
# ---------------------------------------------------------------------------------------------------------


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
        settings = read_object(run / "config.json").get("config", {})
    except UserError as error:
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
                    live.board.history.clear()
                    if live.plain:
                        live.line("[the run was resumed; its lines again]")
                more = len(rows) == BATCH
                for i, row in enumerate(rows):
                    live.board.add(row, timed=not first)
                    if live.plain and (not more or i >= BATCH - 10):  # nobody reads so many
                        live.line(plain_line(live.board))
                seen += len(rows)
                if more:
                    continue
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
