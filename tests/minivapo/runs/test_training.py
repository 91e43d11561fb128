"""The run folder: what it holds, and what happens when it is altered, cut short or full."""

import json
import os
import signal
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from child import command_child, finish
from compare_runs import numbers
from fakes import on_ranks
from hypothesis import given
from hypothesis import strategies as st

from minivapo import files
from minivapo.interfaces import NonFiniteError, UserError, World
from minivapo.loading import load_actor
from minivapo.local import LocalEngine, LocalLearner
from minivapo.runs import training
from minivapo.runs.checkpoint import (
    SAVING_SHARE,
    SaveTimer,
    find_checkpoint,
    save_checkpoint,
    saved_step,
    verify_checkpoint,
)
from minivapo.runs.folder import (
    keep_lines,
    keep_steps,
    last_metrics,
    new_run_folder,
    read_config,
    read_metrics,
    write_config,
)
from minivapo.runs.lock import run_lock
from minivapo.runs.training import run_training
from minivapo.vapo import train_step


@pytest.fixture
def half_run(tiny_model, chain, small, tmp_path):
    """(run, config): a run stopped after its first of three steps, as `minivapo train` would leave it."""
    config, run = small("grpo", steps=3, eval_problems=2), tmp_path / "run"
    info = {"preset": "grpo", "task": "chain", "task_options": {}, "model": str(tiny_model), "critic": None}
    write_config(run, config, info)
    for metrics in run_training(config, chain, LocalEngine(tiny_model, config), run):
        if metrics["step"] == 1:
            break
    return run, config


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_folder_tells_how_it_was_made(half_run):
    run, config = half_run
    found, info = read_config(run)
    assert found == config
    assert info["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "commit" in info
    assert info["task"] == "chain"
    assert [line["step"] for line in read_metrics(run)] == [0, 1]
    records = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert records
    for record in records:
        n = len(record["tokens"])
        assert all(len(record[k]) == n for k in ("token_ids", "logprobs", "old_logprobs", "entropy", "advantages"))
        assert sum(record["rewards"]) == record["rewards"][-1] == float(record["correct"])
    assert {p.name for p in (run / "checkpoint").iterdir()} == {"actor", "progress.json", "manifest.json"}


def test_the_actor_of_a_checkpoint_is_a_transformers_folder(half_run, tiny_model, small):
    run, _ = half_run
    engine = LocalEngine(run / "checkpoint/actor", small("grpo"))
    original = load_actor(tiny_model)
    names = dict(original.named_parameters())
    assert any(not torch.equal(p, names[n]) for n, p in engine.actor.model.named_parameters())


def test_saving_and_loading_gives_the_same_learner_bit_for_bit(tiny_model, chain, small, tmp_path):
    config = small("vapo")
    engine, other = LocalEngine(tiny_model, config), LocalEngine(tiny_model, config)
    engine.sampler.sync(engine.actor)
    train_step(config, chain, engine)
    engine.save(tmp_path / "a")
    other.load(tmp_path / "a")
    other.sampler.sync(other.actor)
    assert other.progress == engine.progress
    for name in ("actor", "critic"):
        one, two = getattr(engine, name), getattr(other, name)
        assert one.version == two.version
        for (n, p), (m, q) in zip(one.model.named_parameters(), two.model.named_parameters(), strict=True):
            assert n == m
            assert torch.equal(p, q)
            for key, x in one.optimizer.state[p].items():
                assert torch.equal(x, two.optimizer.state[q][key])
    first, second = (train_step(config, chain, e) for e in (engine, other))
    assert {k: v for k, v in first.items() if "time/" not in k} == {k: v for k, v in second.items() if "time/" not in k}


@pytest.mark.parametrize("damage", ["altered", "cut", "missing", "added", "manifest"])
def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(half_run, damage, capsys):
    from minivapo.cli import main

    run, _ = half_run
    weights = run / "checkpoint/actor/model.safetensors"
    raw = weights.read_bytes()
    if damage == "altered":
        weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(raw[: len(raw) // 2])
    elif damage == "missing":
        weights.unlink()
    elif damage == "added":
        (run / "checkpoint/critic").mkdir()
        (run / "checkpoint/critic/model.safetensors").write_bytes(b"")
    else:
        (run / "checkpoint/manifest.json").write_text('{"actor/mod')
    before = snapshot(run)
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 1
    message = capsys.readouterr().err
    assert len(message.strip().splitlines()) == 1
    assert "checkpoint" in message
    assert "manifest.json" in message
    assert snapshot(run) == before


def test_a_stop_between_the_renames_resumes_the_old_checkpoint(half_run):
    run, _ = half_run
    (run / "checkpoint").rename(run / "checkpoint.old")
    assert find_checkpoint(run) == run / "checkpoint.old"


def test_a_half_written_new_checkpoint_is_ignored_and_replaced(half_run, chain, tiny_model):
    run, config = half_run
    (run / "checkpoint.new/actor").mkdir(parents=True)
    (run / "checkpoint.new/actor/rubbish").write_text("half")
    lines = list(run_training(config, chain, LocalEngine(tiny_model, config), run, resume=True))
    assert [line["step"] for line in lines] == [2, 3]
    assert not (run / "checkpoint.new").exists()
    assert not list(run.rglob("rubbish"))


def test_no_checkpoint_yet(half_run):
    run, _ = half_run
    (run / "checkpoint").rename(run.parent / "elsewhere")
    with pytest.raises(UserError, match="has no checkpoint"):
        find_checkpoint(run)


@pytest.mark.parametrize(
    "name", ["config.json", "task.json", "metrics.jsonl", "samples.jsonl", "held_out.jsonl", "checkpoint"]
)
def test_a_folder_with_any_part_of_a_run_is_not_written_over(tmp_path, small, name):
    (tmp_path / name).mkdir() if name == "checkpoint" else (tmp_path / name).write_text("{}")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        write_config(tmp_path, small("vapo"), {})
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '"x"', '{"config": {"alhpa": 1}}', '{"config": {"alpha": 0}}', '{"config": 3}', "{}"]
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError):
        read_config(tmp_path)


def test_not_a_run_folder(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        read_config(tmp_path)


def test_half_written_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 0}, {"step": 1}, {"step": 2}]
    for keep in (keep_lines, keep_steps):  # three lines; steps up to 1
        path.write_text('{"step": 0}\n{"step": 1}\n{"step": 1}\n{"step": 2}\n{"st')
        keep(path, 3 if keep is keep_lines else 1)
        assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 1}\n'
        path.write_text('{"step": 0}\n{"step": 1}')  # only its line break is missing
        keep(path, 3)
        assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
        keep(path, 0 if keep is keep_lines else -1)
        assert path.read_text() == ""
        keep(tmp_path / "none", 3)
    assert last_metrics(tmp_path) == {}


def test_a_damaged_line_is_named_before_the_run_goes_on(half_run, chain, tiny_model):
    run, config = half_run
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text("?" + whole)
    before = snapshot(run)
    with pytest.raises(UserError, match="line 1: not a JSON object"):
        list(run_training(config, chain, LocalEngine(tiny_model, config), run, resume=True))
    assert snapshot(run) == before


@pytest.mark.parametrize("cut", [0, 3])
def test_a_long_run_is_taken_up_without_reading_its_lines(tmp_path, monkeypatch, cut):
    """As objects they would take 100 MB; where nothing is cut, nothing is written."""
    path = tmp_path / "metrics.jsonl"
    text = ", ".join(f'"group/metric_{i}": 0.{i}1234' for i in range(40))
    with path.open("w") as file:
        file.writelines(f'{{"step": {step}, {text}}}\n' for step in range(20_000))
    before, parsed = path.stat().st_size, []
    monkeypatch.setattr(files, "parse_object", lambda text: parsed.append(text) or json.loads(text))
    tracemalloc.start()
    keep_lines(path, 20_000 - cut)
    step = last_metrics(tmp_path)["step"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert step == 19_999 - cut and len(parsed) == 1 and peak < 5e6
    assert (path.stat().st_size < before) == bool(cut)


def test_run_folders_are_numbered_and_no_two_get_the_same(tmp_path):
    assert new_run_folder(tmp_path, "a") == tmp_path / "a"
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run_folder(tmp_path, "a"), range(40)))
    assert {path.name for path in made} == {f"a-{i}" for i in range(2, 42)}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run folder"):
        new_run_folder(tmp_path / "file", "a")


# Two processes


@pytest.mark.once
def test_a_run_that_another_process_trains_is_left_alone(half_run, tmp_path):
    """Here another process resumes it; there this one would write a new run."""
    run, config = half_run
    before = snapshot(run)
    with run_lock(run):
        assert finish(command_child, ["train", "--resume", str(run)], tmp_path / "stderr") == 1
        assert "another process is writing in" in (tmp_path / "stderr").read_text()
        assert snapshot(run) == before
    with run_lock(tmp_path), pytest.raises(UserError, match="another process is writing in"):
        write_config(tmp_path, config, {})
    assert not (tmp_path / "config.json").exists()


def hold(run):
    with run_lock(run):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.once
def test_the_lock_dies_with_its_process(tmp_path):
    assert finish(hold, tmp_path) == -signal.SIGKILL
    with run_lock(tmp_path), pytest.raises(UserError, match="another process"), run_lock(tmp_path):
        pass


# How often to save


def count_saves(monkeypatch):
    saves = []

    def counted(engine, *arguments):
        saves.append(engine.progress.lines)
        save_checkpoint(engine, *arguments)

    monkeypatch.setattr(training, "save_checkpoint", counted)
    return saves


@pytest.mark.once
@pytest.mark.parametrize(("every", "wanted"), [(1, [2, 3, 4, 5, 6]), (2, [3, 5, 6]), (10, [6])])
def test_rollouts_are_counted_from_save_to_save(tiny_model, chain, small, tmp_path, monkeypatch, every, wanted):
    """Six lines: the base policy, the reward model, two of value-pretraining, two steps. The end is always saved."""
    saves = count_saves(monkeypatch)
    config = small("vapo")
    list(run_training(config, chain, LocalEngine(tiny_model, config), tmp_path, save_every=every))
    assert saves == wanted


def test_a_run_without_steps_is_saved_at_its_end(tiny_model, chain, small, tmp_path, monkeypatch):
    saves = count_saves(monkeypatch)
    config = small("vapo", steps=0)
    list(run_training(config, chain, LocalEngine(tiny_model, config), tmp_path, save_every=9))
    assert saves == [4]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0, 300))
def test_saving_takes_at_most_its_share_of_the_time(rollouts, cost):
    """The first save is how its duration becomes known; after it every save is paid for by the work before it."""
    clock = SimpleNamespace(time=0.0)
    timer = SaveTimer(0, World(), lambda: clock.time)
    work, saves, lost = 0.0, 0, 0.0
    for seconds in rollouts:
        clock.time += seconds
        work, lost = work + seconds, lost + seconds
        if timer.due():
            begun, clock.time = clock.time, clock.time + cost
            timer.saved(begun)
            if saves:
                assert cost <= SAVING_SHARE * (lost + cost) + 1e-6
            saves, lost = saves + 1, 0.0
        assert lost <= 19 * cost + seconds + 1e-6  # what a kill would lose now
    assert saves >= 1
    assert (saves - 1) * cost <= SAVING_SHARE * (work + (saves - 1) * cost) + 1e-6


def test_all_ranks_save_at_the_same_time():
    """Their clocks differ wildly; a rank that saved alone would wait for ever."""

    def decisions(world):
        clock = SimpleNamespace(time=0.0)
        timer, found = SaveTimer(0, world, lambda: clock.time), []
        for i in range(40):
            clock.time += (1 + i % 5) * (world.rank + 1) ** 3
            found.append(timer.due())
            if found[-1]:
                begun, clock.time = clock.time, clock.time + 0.3 + world.rank
                timer.saved(begun)
        return found

    first, *others = on_ranks(3, decisions)
    assert others == [first, first]
    assert 1 < sum(first) < 40


@pytest.mark.once
def test_earlier_checkpoints_are_kept_by_their_step(tiny_model, chain, small, tmp_path):
    config = small("vapo", steps=4)
    list(run_training(config, chain, LocalEngine(tiny_model, config), tmp_path, save_every=1, keep=3))
    found = {p.name: saved_step(p) for p in tmp_path.glob("checkpoint*")}
    assert found == {"checkpoint": 4, "checkpoint-3": 3, "checkpoint-2": 2}
    for path in tmp_path.glob("checkpoint*"):
        verify_checkpoint(path)
    engine = LocalEngine(tiny_model, config)
    save_checkpoint(engine, tmp_path, keep=2)  # a smaller number later
    assert {p.name for p in tmp_path.glob("checkpoint*")} == {"checkpoint", "checkpoint-4"}


@pytest.mark.once
def test_a_run_killed_before_its_first_checkpoint_starts_again(tiny_model, chain, small, tmp_path):
    config = small("grpo", eval_problems=2)
    run, whole = tmp_path / "run", tmp_path / "whole"
    for folder in (run, whole):
        write_config(folder, config, {})
    for line in run_training(config, chain, LocalEngine(tiny_model, config), run, save_every=9):
        if line["step"] == 1:
            break
    assert len(read_metrics(run)) == 2 and not (run / "checkpoint").exists()
    for folder in (run, whole):
        list(run_training(config, chain, LocalEngine(tiny_model, config), folder, resume=True, save_every=9))
    assert numbers(run) == numbers(whole)
    for name in ("samples.jsonl", "held_out.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def test_a_removed_checkpoint_is_not_silently_trained_again(half_run, tiny_model, chain):
    run, config = half_run
    list(run_training(config, chain, LocalEngine(tiny_model, config), run, resume=True))
    (run / "checkpoint").rename(run.parent / "elsewhere")
    before = snapshot(run)
    with pytest.raises(UserError, match="4 lines of metrics but no checkpoint"):
        list(run_training(config, chain, LocalEngine(tiny_model, config), run, resume=True))
    assert snapshot(run) == before


# A full disk


@pytest.mark.parametrize("limit", [20_000, *(pytest.param(n, marks=pytest.mark.once) for n in (1_000, 3_000, 150_000))])
def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(half_run, tmp_path, limit):
    """No file may grow beyond the limit: metrics, tokenizer, weights or optimizer are cut, as on a full disk."""
    run, _ = half_run
    checkpoint, metrics = snapshot(run / "checkpoint"), read_metrics(run)
    log = tmp_path / "stderr"
    code = finish(command_child, ["train", "--resume", str(run)], log, limit)
    assert code == 1
    message = log.read_text()
    assert 1 <= len(message.strip().splitlines()) <= 2, message
    assert "too large" in message
    assert "intact" in message
    assert read_metrics(run)[:2] == metrics
    assert snapshot(run / "checkpoint") == checkpoint
    find_checkpoint(run)
    assert not (run / "checkpoint.new").exists()


@pytest.mark.once
def test_after_a_full_disk_the_run_goes_on(half_run, tmp_path, chain, tiny_model):
    run, config = half_run
    assert finish(command_child, ["train", "--resume", str(run)], tmp_path / "stderr", 20_000) == 1
    lines = list(run_training(config, chain, LocalEngine(tiny_model, config), run, resume=True))
    assert [line["step"] for line in lines] == [2, 3]
    assert [line["step"] for line in read_metrics(run)] == [0, 1, 2, 3]


# Numbers that are not finite


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_refused(tiny_model, chain, small, where, bad):
    config = small("grpo")
    engine = LocalEngine(tiny_model, config)
    engine.sampler.sync(engine.actor)
    train_step(config, chain, engine)  # so that the optimizer has a state
    learner: LocalLearner = engine.actor
    before = {k: v.clone() for k, v in learner.model.state_dict().items()}
    moments = [x.clone() for s in learner.optimizer.state.values() for x in s.values()]
    version = learner.version
    if where == "gradient":
        next(learner.model.parameters()).register_hook(lambda g: g * bad)

    def loss_fn(outputs, rows):
        loss = outputs["logprobs"].sum() * (bad if where == "loss" else 1.0)
        return loss, {"loss": loss.detach()}, {}

    with pytest.raises(NonFiniteError, match=r"actor: loss .*gradient norm .*refused"):
        learner.step(engine.rollout, loss_fn, 0.1)
    assert all(torch.equal(v, before[k]) for k, v in learner.model.state_dict().items())
    assert all(
        torch.equal(x, y)
        for x, y in zip(moments, (x for s in learner.optimizer.state.values() for x in s.values()), strict=True)
    )
    assert learner.version == version


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(
    half_run, monkeypatch, capsys
):  # fmt: skip
    import minivapo.vapo as vapo
    from minivapo.cli import main

    run, _ = half_run
    checkpoint = snapshot(run / "checkpoint")
    real = vapo.policy_loss
    monkeypatch.setattr(vapo, "policy_loss", lambda *args: real(*args) * float("nan"))
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 1
    message = capsys.readouterr().err
    assert "actor: loss nan" in message
    assert "Traceback" not in message
    assert snapshot(run / "checkpoint") == checkpoint
    monkeypatch.undo()
    assert main(["train", "--resume", str(run)]) == 0


def test_weights_that_are_not_finite_end_in_a_message(tiny_model, chain, small):
    engine = LocalEngine(tiny_model, small("grpo"))
    torch.nn.init.constant_(engine.actor.model.lm_head.weight, float("nan"))
    engine.sampler.sync(engine.actor)
    with pytest.raises(NonFiniteError, match="not finite"):
        engine.sampler.generate([[5, 6]], 2, 0, 0)


def test_saving_twice_replaces_the_checkpoint(tiny_model, small, tmp_path):
    engine = LocalEngine(tiny_model, small("grpo"))
    save_checkpoint(engine, tmp_path)
    engine.progress.step = 7
    save_checkpoint(engine, tmp_path)
    assert json.loads((find_checkpoint(tmp_path) / "progress.json").read_text())["step"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
