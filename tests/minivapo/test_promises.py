"""Names, presets and flags that stay put: what others build on answers, by its old name too."""

import importlib
import inspect
from pathlib import Path

import pytest

from minivapo.commands.train import read
from minivapo.vapo import PRESETS

SIGNATURES = {
    "minivapo.vapo.gae": "rewards values mask gamma lam",
    "scaled.gae.gae": "rewards values mask gamma lam",
    "scaled.gae.packed_gae": "rewards values cu_seqlens gamma lam",
    "minivapo.vapo.length_adaptive_lambda": "lengths alpha",
    "minivapo.vapo.policy_loss": "logprobs old_logprobs advantages weights count clip_low clip_high",
    "minivapo.vapo.positive_example_loss": "logprobs mask count",
    "minivapo.vapo.value_loss": "values returns mask count old_values clip",
    "minivapo.vapo.train": "config task engine",
    "minivapo.math_tasks.grade": "response answer",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_promised_function_answers(name):
    module, _, function = name.rpartition(".")
    found = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert " ".join(found) == SIGNATURES[name]


def test_grade_judges_by_its_old_name():
    pytest.importorskip("math_verify")
    from minivapo.math_tasks import grade

    assert grade(r"so it is \boxed{18}.", "18") is True and grade("Answer: 17", "18") is False


def test_the_presets_are_there():
    parts = ("value-pretraining", "decoupled-gae", "adaptive-gae", "clip-higher", "token-loss", "positive-loss")
    ablations = {f"vapo-wo-{part}" for part in (*parts, "group-sampling")}
    assert set(PRESETS) == {"vapo", "ppo", "grpo", "dapo"} | ablations


def test_the_short_flags_of_train_answer():
    words = ["--preset", "grpo", "--task", "proof", "--model", "M", "--steps", "3", "--seed", "4", "--run", "R"]
    args = read([*words, "--device", "cpu"])
    assert (args.preset, args.task, args.model, args.run, args.device) == ("grpo", "proof", "M", Path("R"), "cpu")
    assert (args.config.steps, args.config.seed) == (3, 4)
