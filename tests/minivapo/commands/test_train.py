"""`minivapo train` over the life of a run: extended, moved, branched from, started by a machine again and again."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from minivapo.cli import main
from minivapo.loading import load_actor
from minivapo.runs.folder import read_config, read_metrics

pytestmark = pytest.mark.once

SIZE = (
    "--preset grpo --batch-size 8 --mini-batch 8 --group-size 4 --max-new-tokens 8 --eval-problems 2 --device cpu "
    "--overlong-share 0.9"  # no response is right: their lengths are what there is to learn
)


def train(*words):
    return main(["train", *map(str, words)])


def begin(model, run, *words, steps=2):
    return train(*SIZE.split(), "--model", model, "--run", run, "--steps", steps, "--save-every", 1, *words)


def numbers(run):
    """Metrics without times, and without the evaluation that only the end of a run has."""
    skip = ("time/", "eval/")
    return [{k: v for k, v in line.items() if not k.startswith(skip)} for line in read_metrics(run)]


def changed(run):
    return json.loads((run / "config.json").read_text()).get("changes")


def test_a_run_is_extended_and_what_changed_is_recorded(tiny_model, tmp_path, capsys):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert begin(tiny_model, run) == 0
    assert train("--resume", run) == 1
    assert "nothing left to train. --steps N extends it" in capsys.readouterr().err
    assert changed(run) is None
    assert train("--resume", run, "--steps", 4, "--save-every", 3, "--threads", 1) == 0
    assert begin(tiny_model, whole, steps=4) == 0
    assert numbers(run) == numbers(whole)
    assert read_config(run)[0].steps == 4
    assert changed(run) == [{"step": 2, "changed": {"steps": [2, 4], "threads": [0, 1], "save_every": [1, 3]}}]
    assert train("--resume", run, "--steps", 3) == 1
    assert "--steps is 3, but" in capsys.readouterr().err
    assert train("--resume", run, "--seed", 3, "--steps", 9) == 2
    assert "--seed cannot be changed" in capsys.readouterr().err and read_config(run)[0].steps == 4


def test_resume_auto_begins_goes_on_and_ends(tiny_model, tmp_path, capsys):
    """One command, as a scheduler gives it again and again."""
    run = tmp_path / "run"
    assert begin(tiny_model, run, "--resume", "auto") == 0
    lines = read_metrics(run)
    assert begin(tiny_model, run, "--resume", "auto") == 0
    assert "is complete" in capsys.readouterr().out and read_metrics(run) == lines
    shutil.rmtree(run / "checkpoint")
    (run / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")  # killed before its first checkpoint
    assert begin(tiny_model, run, "--resume", "auto") == 0
    assert [line["step"] for line in read_metrics(run)] == [0, 1, 2]
    assert begin(tiny_model, run, "--resume", "auto", steps=3) == 0
    assert [line["step"] for line in read_metrics(run)] == [0, 1, 2, 3]
    assert begin(tiny_model, run, "--resume", "auto", "--actor-lr", 1) == 2
    assert "--actor-lr cannot be changed" in capsys.readouterr().err


def test_a_moved_run_needs_nothing_outside(tiny_model, tmp_path, monkeypatch):
    """Relative names, another working directory, a model that is gone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "model")
    assert begin("model", "run", "--preset", "vapo", "--value-pretrain-steps", 1, "--reward-model-steps", 1) == 0
    assert begin("model", "whole", "--preset", "vapo", "--value-pretrain-steps", 1, "--reward-model-steps", 1,
                 steps=3) == 0  # fmt: skip
    shutil.rmtree("model")
    Path("elsewhere").mkdir()
    shutil.move("run", "elsewhere/moved")
    monkeypatch.chdir("elsewhere")
    assert train("--resume", "moved", "--steps", 3) == 0
    assert numbers(Path("moved")) == numbers(tmp_path / "whole")


def test_the_reference_policy_is_found_again_or_refused(tiny_model, tmp_path, monkeypatch, capsys):
    """kl_coef holds the policy to the model that the run was started from, wherever that is now."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, "a/model")
    for name in ("a/run", "whole"):
        assert begin("a/model", name, "--kl-coef", 0.1, steps=2 if name == "a/run" else 5) == 0
    monkeypatch.chdir("a")
    assert train("--resume", "run", "--steps", 3) == 0  # another working directory
    shutil.move("run", "../run")
    assert train("--resume", "../run", "--steps", 4) == 0  # the run moved, the model not
    shutil.move("../run", "run")
    monkeypatch.chdir(tmp_path)
    shutil.move("a", "b")
    weights = Path("b/model/model.safetensors")
    good = weights.read_bytes()
    before = {p: p.read_bytes() for p in Path("b/run").rglob("*") if p.is_file()}
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), None):
        weights.unlink() if bad is None else weights.write_bytes(bad)
        assert train("--resume", "b/run", "--steps", 5) == 1
        message = capsys.readouterr().err
        assert "kl_coef" in message and ("is gone" if bad is None else "has other weights now") in message
        assert {p: p.read_bytes() for p in Path("b/run").rglob("*") if p.is_file()} == before
    weights.write_bytes(good)
    assert train("--resume", "b/run", "--steps", 5) == 0  # run and model moved together
    assert numbers(Path("b/run")) == numbers(Path("whole"))


def test_a_branch_goes_on_with_another_configuration(tiny_model, tmp_path, capsys):
    run, same, other = tmp_path / "run", tmp_path / "same", tmp_path / "other"
    assert begin(tiny_model, run, "--keep", 9, steps=3) == 0
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert train("--branch-from", f"{run}@1", "--run", same) == 0
    assert numbers(same) == numbers(run)  # the same configuration: the same run
    assert train("--branch-from", f"{run}@2", "--run", other, "--actor-lr", 0.01) == 0
    assert numbers(other)[:3] == numbers(run)[:3] and numbers(other)[3] != numbers(run)[3]
    config, info = read_config(other)
    assert config.actor_lr == 0.01 and info["branched_from"] == {"run": str(run), "step": 2}
    one, two = (dict(load_actor(r).named_parameters()) for r in (run, other))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert train("--resume", other, "--steps", 4) == 0  # a run like any other


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["{run}@7"], "has no checkpoint of step 7, only of 2"),
        (["{run}", "--model", "other"], "--model cannot be changed on --branch-from"),
        (["{run}", "--advantage", "gae"], "--advantage cannot be changed on --branch-from"),
        (["{run}", "--run", "{run}"], "already holds a run"),
    ],
)
def test_a_branch_that_cannot_be(tiny_model, tmp_path, capsys, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert begin(tiny_model, run) == 0
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert train("--branch-from", *(word.format(run=run) for word in words)) in (1, 2)
    assert text in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
