"""Mistakes of the user: a message of one or two lines, an exit code that is not 0, and nothing lost."""

import dataclasses
import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minivapo.cli import COMMANDS, main
from minivapo.commands.train import read
from minivapo.interfaces import UserError
from minivapo.local import LocalEngine
from minivapo.options.embedded import fitted
from minivapo.responses import judge
from minivapo.runs.folder import write_config
from minivapo.tasks import TASKS
from minivapo.tasks.chain import Chain, ChainSpec
from minivapo.vapo import PRESETS, Config, train


@pytest.fixture
def fails(capsys, tmp_path, monkeypatch):
    """fails(*argv) -> message: runs a command in an empty folder that must refuse and leave the folder alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*argv, untouched=True):
        capsys.readouterr()
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = stop.code
        message = capsys.readouterr().err
        assert code in (1, 2), (code, message)
        assert 1 <= len(message.strip().splitlines()) <= 2, message
        assert "Traceback" not in message
        if untouched:
            assert sorted(str(p) for p in tmp_path.rglob("*")) == before
        return message

    return run


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["train", "--stps", "3"], ["--stps", "perhaps you meant --steps"]),
        (["train", "--steps", "three"], ["--steps takes INT", "three"]),
        (["train", "--steps"], ["--steps"]),
        (["trian"], ["trian", "train"]),
        (["train", "--preset", "vpao"], ["vpao", "vapo-wo-group-sampling"]),
        (["train", "--preset=vpao"], ["vpao"]),
        (["train", "--task", "chian"], ["chian", "chain, proof"]),
        (["train", "--alpha", "0"], ["alpha is 0.0", "above 0"]),
        (["train", "--alpha", "-0.05"], ["alpha is -0.05"]),
        (["train", "--alpha", "nan"], ["alpha is nan"]),
        (["train", "--lam", "1.01"], ["lam is 1.01", "[0, 1]"]),
        (["train", "--lam-critic", "-0.1"], ["lam_critic is -0.1", "[0, 1]"]),
        (["train", "--gamma", "2"], ["gamma is 2.0", "[0, 1]"]),
        (["train", "--preset", "grpo", "--group-size", "1"], ["group_size is 1", "at least 2"]),
        (["train", "--preset", "dapo", "--group-size", "1"], ["group_size is 1", "at least 2"]),
        (["train", "--group-size", "0"], ["group_size is 0"]),
        (["train", "--mini-batch", "512"], ["mini_batch is 512", "batch_size 256"]),
        (["train", "--batch-size", "30"], ["30", "group_size 8"]),
        (["train", "--clip-low", "1.5"], ["clip_low"]),
        (["train", "--actor-lr", "0"], ["actor_lr is 0"]),
        (["train", "--kl-coef", "-1"], ["kl_coef is -1"]),
        (["train", "--reward-correct", "0"], ["reward_correct"]),
        (["train", "--seed"], ["--seed needs a value"]),
        (["eval"], ["SOURCE must be given"]),
        (["eval", "--sampels", "3"], ["--sampels", "perhaps you meant --samples"]),
        (["eval", "x", "--sampler", "hf"], ["--sampler is hf", "transformers, vllm"]),
        (["train", "--no-decoupled-gea"], ["--no-decoupled-gea", "perhaps you meant --no-decoupled-gae"]),
        (["train", "--config", "none.yaml"], ["no such config file: none.yaml"]),
        (["reward-model", "x", "--lam", "2"], ["lam is 2.0", "[0, 1]"]),
        (["make-base", "x", "--steps", "0"], ["--steps is 0", "at least 1"]),
        (["train", "--device", "tpu"], ["tpu", "cpu"]),
        (["train", "--resume", "nowhere"], ["nowhere", "not a run folder"]),
        (["train", "--resume", "auto"], ["--resume auto needs --run DIR"]),
        (["train", "--branch-from", "nowhere@3"], ["nowhere", "not a run folder"]),
        (["train", "--stop", ""], ['--stop ""', "first token"]),
        (["train", "--model", "no/such-model"], ["no/such-model", "no such folder"]),
        (["train", "--model", "/no/such/folder"], ["/no/such/folder", "there is no folder"]),
        (["train", "--task", "gsm8k:missing.jsonl", "--model", "x"], ["cannot load", "'x'"]),
        (["sample", "/no/such/folder"], ["/no/such/folder"]),
        (["make-base", "new", "--task", "chian"], ["chian", "chain"]),
        (["train", "--save-every", "-1"], ["--save-every is -1"]),
        (["train", "--keep", "0"], ["--keep is 0"]),
        (["train", "--threads", "-1"], ["--threads is -1"]),
        (["train", "--critic", "/no/such/folder"], ["/no/such/folder", "there is no folder"]),
        (["sample", "x", "--count", "0"], ["--count is 0"]),
        (["sample", "x", "--temperature", "-1"], ["--temperature is -1.0", "not be negative"]),
        (["eval", "x", "--top-p", "0"], ["--top-p is 0.0", "(0, 1]"]),
        (["eval", "x", "--samples", "0"], ["--samples is 0"]),
        (["eval", "/no/such/folder"], ["/no/such/folder", "there is no folder"]),
        (["report", "nowhere"], ["nowhere"]),
        (["watch", "nowhere"], ["nowhere"]),
        (["ablate", "--out", "new", "--presets", "vpao"], ["vpao", "vapo"]),
        (["ablate", "--out", "new", "--sedes", "2"], ["--sedes", "--seeds"]),
        (["ablate", "--out", "new", "--seeds", "0"], ["--seeds is 0"]),
        (["ablate", "--out", "new", "--overrides", "stps=3"], ["stps=3"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x[0], str) and x[0] in (*COMMANDS, "trian") else "",
)
def test_mistakes_on_the_command_line(fails, argv, wanted):
    message = fails(*argv)
    assert all(word in message for word in wanted), message


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistyped_flag_is_one_line_in_any_terminal(fails, monkeypatch, encoding):
    """The parser draws boxes of Unicode or ASCII by the encoding of standard output."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    monkeypatch.setattr("sys.stdout", out)
    message = fails("train", "--stps", "3")
    assert message.startswith("minivapo: Unrecognized options: --stps, 3; perhaps you meant --steps")
    assert message.endswith(". `minivapo train --help` explains each flag.\n")
    assert fails("train", "--alpha", "0").startswith("minivapo: alpha is 0.0; it must be above 0")


def test_missing_data_of_a_task_is_named(fails, tiny_model):
    pytest.importorskip("datasets")
    assert "missing.jsonl" in fails("train", "--task", "gsm8k:missing.jsonl", "--model", tiny_model)


def test_without_arguments_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "minivapo train" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_flags(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_new_base_does_not_replace_a_folder(fails, tmp_path):
    (tmp_path / "mine").mkdir()
    assert "exists already" in fails("make-base", tmp_path / "mine")


@pytest.mark.parametrize("remove", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_model_folder(fails, tiny_model, tmp_path, remove):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in tiny_model.iterdir():
        if path.name != remove:
            (broken / path.name).write_bytes(path.read_bytes())
    message = fails("train", "--model", broken)
    assert "cannot load" in message
    assert "not a complete transformers folder" in message


def test_a_run_folder_that_already_holds_a_run(fails, tiny_model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 0}\n')
    message = fails("train", "--model", tiny_model, "--run", run)
    assert "already holds a run" in message
    assert "--resume" in message
    assert (run / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_a_run_folder_that_cannot_be_made(fails, tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write the run folder" in fails("train", "--model", tiny_model, "--run", tmp_path / "file/run")


@pytest.mark.once
def test_a_complete_run_has_nothing_left(fails, tiny_model, tmp_path):
    flags = ["--steps", 1, "--batch-size", 4, "--mini-batch", 4, "--group-size", 2, "--max-new-tokens", 8]
    code = main([str(a) for a in ["train", "--preset", "grpo", "--model", tiny_model, "--run", tmp_path / "run",
                                  "--eval-problems", 2, *flags]])  # fmt: skip
    assert code == 0
    assert (tmp_path / "run/report.html").exists()
    assert "nothing left to train" in fails("train", "--resume", tmp_path / "run")


FIELDS = {
    "gamma": -0.1, "lam": float("nan"), "lam_critic": 1.1, "alpha": 0.0, "clip_low": 0.0, "clip_high": -0.1,
    "batch_size": 0, "mini_batch": 0, "micro_batch": 0, "epochs": 0, "critic_epochs": 0, "max_new_tokens": 0,
    "eval_problems": 0, "eval_samples": 0, "steps": -1, "value_pretrain_steps": -1, "reward_model_steps": -1,
    "warmup": -1, "dynamic_sampling": -1, "eval_every": -1, "actor_lr": 0.0, "critic_lr": -1.0,
    "value_pretrain_lr": 0.0, "max_grad_norm": 0.0, "eval_temperature": -0.1, "eval_top_p": 0.0, "group_size": 0,
    "kl_coef": -0.1, "positive_coef": -0.1, "value_clip": -0.1, "importance_cap": -1.0, "weight_decay": -0.1,
    "overlong_share": 1.0, "verifier_timeout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_every_bad_field_is_refused_by_name_also_in_the_library(name):
    with pytest.raises(UserError, match=name):
        Config(**{name: FIELDS[name]})


def test_ablations_are_one_field_away_from_vapo():
    vapo = dataclasses.asdict(PRESETS["vapo"])
    for name, config in PRESETS.items():
        changed = [k for k, v in dataclasses.asdict(config).items() if v != vapo[k]]
        if name.startswith("vapo-wo-"):
            assert len(changed) == 1, (name, changed)
    assert sum(name.startswith("vapo-wo-") for name in PRESETS) == 7


def test_a_number_of_ranks_that_does_not_divide_the_batch(tiny_model, chain, small):
    config = small("vapo")
    engine = LocalEngine(tiny_model, config)
    engine.world = type("Three", (type(engine.world),), {"size": 3})()
    with pytest.raises(UserError, match="multiple of the 3 ranks"):
        next(train(config, chain, engine))


# A task whose verifier fails


class Broken(Chain):
    """Its verifier works for the first two batches and then does what `how` says."""

    name = "broken"
    how = "raise"
    release = threading.Event()

    def __init__(self):
        super().__init__(ChainSpec(max_steps=3))
        self.batches = 0

    def judge(self, problems, responses):
        self.batches += 1
        if self.batches > 2:
            if self.how == "hang":
                self.release.wait(60)
            if self.how == "raise":
                raise KeyError("no such\nanswer")
            if self.how == "exit":
                raise SystemExit(0)
            return [True]
        return super().judge(problems, responses)


@pytest.mark.once
@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("raise", ["'broken'", "KeyError", "answer"]),
        ("exit", ["'broken'", "SystemExit"]),
        ("short", ["'broken'", "1 verdicts on 8 responses"]),
        ("hang", ["'broken'", "within 2 s", "verifier_timeout"]),
    ],
)
def test_a_verifier_that_fails_leaves_the_checkpoint(
    fails, tiny_model, tmp_path, monkeypatch, how, wanted
):  # fmt: skip
    monkeypatch.setitem(TASKS, "broken", Broken)
    monkeypatch.setattr(Broken, "how", how)
    run = tmp_path / "run"
    started = time.monotonic()
    message = fails(
        "train", "--preset", "grpo", "--task", "broken", "--model", tiny_model, "--run", run, "--batch-size", 8,
        "--mini-batch", 8, "--group-size", 4, "--max-new-tokens", 8, "--eval-problems", 4, "--steps", 3,
        "--verifier-timeout", 2, untouched=False,
    )  # fmt: skip
    Broken.release.set()
    assert all(word in message for word in wanted), message
    assert time.monotonic() - started < 50
    assert (run / "checkpoint/manifest.json").exists()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    Broken.release.clear()
    monkeypatch.setattr(Broken, "judge", Chain.judge)
    assert main(["train", "--resume", str(run)]) == 0


def test_judge_gives_verdicts_and_passes_on_the_tasks_messages(chain):
    problems = chain.train_problems(0, 2, 0)
    assert judge(chain, problems, [f"= {problems[0].answer}", "?"], 10.0) == [True, False]

    class Telling(Chain):
        def judge(self, problems, responses):
            raise UserError("install math-verify")

    with pytest.raises(UserError, match=r"^install math-verify$"):
        judge(Telling(), [], [], 1.0)


# One road for words, presets and files


def test_a_preset_is_what_its_flags_stand_on():
    args = read(["--preset", "grpo", "--steps", "3", "--whiten", "true", "alpha=0.1"])
    assert args.config == dataclasses.replace(fitted(PRESETS["grpo"], "locks"), steps=3, whiten=True, alpha=0.1)
    wanted = fitted(PRESETS["vapo-wo-decoupled-gae"], "locks", critic=True)
    assert read(["--no-decoupled-gae"]).config == wanted
    assert read(["--no-decoupled-gae", "--task", "gsm8k"]).config == PRESETS["vapo-wo-decoupled-gae"]


def test_the_critic_that_comes_with_a_base_gives_way():
    """It starts a run that pretrains and says nothing else; an ablation, another model or own steps do without it."""
    assert (read([]).config.critic_init, read([]).config.value_pretrain_steps) == ("shipped", 0)
    for words in (["--value-pretrain-steps", "4"], ["--model", "m"], ["--critic", "c"], ["--preset", "ppo"]):
        assert read(words).config.critic_init == "reward-model"
    assert read(["--value-pretrain-steps", "4"]).config.value_pretrain_steps == 4
    assert read(["--model", "m"]).config.value_pretrain_steps == PRESETS["vapo"].value_pretrain_steps
    assert read(["--preset", "vapo-wo-value-pretraining"]).config.critic_init == "reward-model"


def test_a_file_holds_flags_and_the_command_line_overrules_it(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("preset: dapo\ntask: proof\nsteps: 5\nactor_lr: 1e-6\nwhiten: true\nstop: [a b, c]\nmodel:\n")
    for words in (["--config", str(path)], [str(path)]):
        args = read([*words, "--steps", "4"])
        assert (args.preset, args.task, args.stop, args.model) == ("dapo", "proof", ("a b", "c"), None)
        dapo = fitted(PRESETS["dapo"], "proof")
        assert args.config == dataclasses.replace(dapo, steps=4, actor_lr=1e-6, whiten=True)


def test_both_names_of_the_run_folder_answer():
    assert read(["--run", "x"]).run == read(["--run-dir", "x"]).run == Path("x")


def test_a_run_goes_on_as_it_was_started(fails, tmp_path):
    config = PRESETS["grpo"]
    info = {"preset": "grpo", "task": "chain", "task_options": {}, "model": "m", "critic": None}
    write_config(tmp_path / "run", config, info | {"engine_options": {"autocast": True, "stop": ["x"]}})
    args = read(["--resume", str(tmp_path / "run"), "--save-every", "3"])
    assert (args.config, args.model, args.bf16, args.stop, args.save_every) == (config, "m", True, ("x",), 3)
    for flag in ("--actor-lr", "--seed"):
        message = fails("train", "--resume", tmp_path / "run", flag, 99)
        assert f"{flag} cannot be changed on --resume" in message
    message = fails("train", "--resume", tmp_path / "run", "--bf16", False, "--seed", 99, "--actor-lr", 99)
    assert "--bf16, --actor-lr and --seed cannot be changed on --resume; a run goes on" in message


@pytest.mark.parametrize("words", [["trian"], ["eval", "--sampels", "3"], ["ablate", "--seeds", "0"]])
def test_a_typo_is_answered_without_torch(words):
    code = f"""if True:
        import sys
        from minivapo.cli import main
        code = main({words!r})
        assert "torch" not in sys.modules
        sys.exit(code)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("minivapo: ")
