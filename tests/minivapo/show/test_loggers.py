"""TensorBoard, Weights & Biases, and that neither ever ends a run."""

import io
import json
import math
import sys
import types

import pytest
from rich.console import Console

from minivapo import cli
from minivapo.interfaces import UserError
from minivapo.show.live import Live
from minivapo.show.loggers import make_loggers
from minivapo.vapo import PRESETS

CONFIG = PRESETS["vapo"]
LINES = [
    {"step": 0, "pretrain/rollout": 2, "pretrain/value_loss": 0.2},
    {"step": 0, "pretrain/rollout": 3, "pretrain/value_loss": 0.1},
    *({"step": i, "reward/accuracy": 0.2 + i / 10, "time/total": 3.0} for i in range(1, 5)),
]


def quiet():
    """A console that is no terminal."""
    return Console(file=io.StringIO())


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "chain-vapo-0"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {"steps": 4}}))
    return folder


@pytest.mark.parametrize("flag", ["--tensorboard", "--wandb"])
def test_a_missing_package_is_told_before_a_folder_is_written(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main(["train", "--run", str(tmp_path / "run"), "--steps", "1", flag]) == 1
    assert "pip install -c constraints.txt -e '.[logging]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Failing:
    """A logger that fails at its n-th call."""

    def __init__(self, good):
        self.good, self.calls = good, 0

    def write(self, metrics):
        self.calls += 1
        if self.calls > self.good:
            raise OSError(28, "No space left on device")

    def close(self):
        self.write({})


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize(
    ("flag", "made_by", "name"),
    [("tensorboard", "TensorBoard", "TensorBoard"), ("wandb", "WeightsAndBiases", "Weights & Biases")],
)
def test_a_failing_logger_says_so_once_and_the_run_goes_on(run, monkeypatch, plain, flag, made_by, name):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # installed, whether it is or not
    made = Failing(2)
    monkeypatch.setattr(f"minivapo.show.loggers.{made_by}", lambda *_: made)
    file = io.StringIO()
    with Live(CONFIG, run, **{flag: True}, console=Console(file=file, width=200), plain=plain) as view:
        for line in LINES:
            view.update(line)
    assert made.calls == 3
    assert file.getvalue().count(f"{name} failed and gets no more lines (OSError: [Errno 28] No space left") == 1
    assert view.board.step == 4


def test_a_logger_that_fails_does_not_end_the_run(run, monkeypatch):
    said = []
    monkeypatch.setattr("minivapo.show.loggers.TensorBoard", lambda _: Failing(1))
    [logger] = make_loggers(run, {}, True, False, said.append)
    logger.write(LINES[0])
    logger.close()
    assert len(said) == 1
    (run / "tensorboard").write_text("a file where a folder should be")
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    [logger] = make_loggers(run, {}, True, False, said.append)
    logger.write(LINES[0])
    logger.close()
    assert len(said) == 2


def test_missing_loggers_are_explained(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"--tensorboard needs TensorBoard: pip install .*\.\[logging\]"):
        Live(CONFIG, run, tensorboard=True)
    with pytest.raises(UserError, match=r"--wandb needs Weights & Biases"):
        Live(CONFIG, run, wandb=True)
    with pytest.raises(UserError, match="run folder"):
        Live(CONFIG, wandb=True)


def test_tensorboard_files_hold_the_metrics(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Live(CONFIG, run, tensorboard=True, console=quiet()) as view:
        for line in [*LINES, {"step": 5, "bad/nan": math.nan}]:
            view.update(line)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = [(e.step, round(e.value, 6)) for e in events.Scalars("reward/accuracy")]
    assert found == [(1, 0.3), (2, 0.4), (3, 0.5), (4, 0.6)]
    assert [e.step for e in events.Scalars("pretraining/value_loss")] == [2, 3]
    assert "bad/nan" not in events.Tags()["scalars"]


def test_wandb_gets_every_line_and_the_same_id_on_resume(run, monkeypatch):
    calls = []

    class Session:
        def define_metric(self, *args, **options):
            calls.append(("define", args, options))

        def log(self, numbers):
            calls.append(("log", numbers))

        def finish(self, exit_code):
            calls.append(("finish", exit_code))

    fake = types.SimpleNamespace(
        init=lambda **options: calls.append(("init", options)) or Session(),
        errors=types.SimpleNamespace(Error=RuntimeError),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        with Live(CONFIG, run, wandb=True, console=quiet()) as view:
            view.update(LINES[0])
            view.update(LINES[2])
    starts = [c[1] for c in calls if c[0] == "init"]
    assert starts[0]["id"] == starts[1]["id"] and starts[0]["name"] == "chain-vapo-0"
    assert starts[0]["config"]["alpha"] == 0.05
    logs = [c[1] for c in calls if c[0] == "log"]
    assert logs[0]["pretraining/rollout"] == 2 and "step" not in logs[0]
    assert logs[1]["step"] == 1 and logs[1]["reward/accuracy"] == pytest.approx(0.3)
    assert calls[-1] == ("finish", 0)
