"""The look before a run: real models that would train on wrong numbers are refused, and the others are not."""

import copy
import dataclasses
import math
import re

import pytest
import torch
from toy import ToyTask
from toy_models import make_toy

from minivapo.cli import main
from minivapo.interfaces import UserError
from minivapo.local import LocalEngine, LocalSampler
from minivapo.probe import EXACT, choose_prompts, probe
from minivapo.runs.folder import write_config
from minivapo.runs.training import run_training
from minivapo.vapo import Config, train_step

PROBLEMS = ToyTask().test_problems(3)
SHORT = Config(max_prompt_tokens=60, max_new_tokens=20, micro_batch=6)


def look(folder, config=SHORT, **how):
    return probe(LocalEngine(folder, config, **how), PROBLEMS, config)


# Their own caches, ALiBi, dropout that is no nn.Dropout, multi-query and latent attention, windows.
STRANGE = ["Mamba 2", "Falcon H1", "Granite 4 hybrid", "LFM 2", "Qwen 3.5", "Qwen 3 Next", "MPT", "GPT-2"]


@pytest.mark.parametrize("name", [*STRANGE, "Mistral", "DeepSeek V3 (MLA)", "OLMo 3"])
def test_a_policy_of_another_family_works(name, tmp_path):
    gaps = look(make_toy(name, tmp_path), dataclasses.replace(SHORT, advantage="group"))
    assert set(gaps) == {"sampler", "actor alone", "actor training"}
    assert max(gaps.values()) < 1e-4


def test_mamba_works_or_is_refused(tmp_path):
    """By the version of transformers: in some of them its cache mixes up rows of unequal length."""
    said = ""
    try:
        largest = max(look(make_toy("Mamba", tmp_path), dataclasses.replace(SHORT, advantage="group")).values())
    except UserError as error:
        said, largest = str(error), math.inf
    refused = re.search(r"would train on wrong numbers: the sampler's log-probs .* docs/models.md", said)
    assert largest < 1e-4 or refused


def test_prompts_are_short_and_of_unequal_length(tiny_model, chain, small):
    engine = LocalEngine(tiny_model, small("grpo"))
    for problems in (chain.train_problems(0, 3, 0), chain.train_problems(0, 1, 0) * 3, chain.train_problems(0, 1, 0)):
        rows = choose_prompts(engine.tokenizer, problems, small("grpo"), 0)
        assert len({len(row) for row in rows}) == len(rows) == 3 and max(map(len, rows)) <= 40


def test_the_probe_changes_no_number_of_the_run(tiny_model, chain, small):
    config = small("vapo")
    found = []
    for probed in (False, True):
        engine = LocalEngine(tiny_model, config)
        if probed:
            gaps = probe(engine, chain.train_problems(0, 3, 0), config)
            assert set(gaps) == {f"{k} {c}" for k in ("actor", "critic") for c in ("alone", "training")} | {"sampler"}
            assert max(gaps.values()) < EXACT / 10 and engine.sampler.max_new_tokens == config.max_new_tokens
        engine.sampler.sync(engine.actor)
        metrics = train_step(config, chain, engine)
        found.append({key: value for key, value in metrics.items() if not key.startswith("time/")})
    assert found[0] == found[1]


def test_tables_that_follow_the_longest_row_are_refused(tmp_path):
    """LongRoPE of Phi 3 takes other tables past 32 tokens here: in the cache, and for all rows of a batch."""
    folder = make_toy("Phi 3 LongRoPE", tmp_path)
    with pytest.raises(UserError, match=r"rows beside it .* nats.*at 32 or less"):
        look(folder)
    with pytest.raises(UserError, match=r"sampler's log-probs are not the learner's .*at 32 or less"):
        look(folder, dataclasses.replace(SHORT, micro_batch=1))
    long, within = Config(max_prompt_tokens=32, max_new_tokens=20), Config(max_prompt_tokens=22, max_new_tokens=10)
    problems = [dataclasses.replace(p, prompt=p.prompt[:20]) for p in PROBLEMS]
    assert max(probe(LocalEngine(folder, within), problems, within).values()) < EXACT
    with pytest.raises(UserError, match="32 or less"):
        probe(LocalEngine(folder, long), problems, long)


def test_rows_that_see_each_other_are_refused(tmp_path):
    engine = LocalEngine(make_toy("Llama", tmp_path), SHORT)
    engine.actor.model.model.norm.register_forward_hook(lambda _, __, x: x - 0.1 * x.mean(0, keepdim=True))
    with pytest.raises(UserError, match=r"LlamaForCausalLM \(llama\) .*the actor depend on the rows beside it"):
        probe(engine, PROBLEMS, SHORT)


def test_a_short_row_is_looked_at_beside_a_long_one(tmp_path, monkeypatch):
    """Sorted by length, as micro-batches are, these two would never meet."""
    engine = LocalEngine(make_toy("Llama", tmp_path), SHORT)
    plain = engine.actor.forward

    def leaks(rollout, training=False):
        found = plain(rollout, training)
        unlike = len(rollout) == 2 and rollout.totals.max() > rollout.totals.min() + 12
        return {name: x + 0.01 * unlike for name, x in found.items()}

    monkeypatch.setattr(engine.actor, "forward", leaks)
    problems = [dataclasses.replace(PROBLEMS[0], prompt=("w3 " * n).strip()) for n in (1, 7, 15)]
    with pytest.raises(UserError, match="the actor depend on the rows beside it"):
        probe(engine, problems, SHORT)


@pytest.mark.parametrize("kind", ["actor", "critic"])
def test_dropout_while_training_is_refused(kind, tmp_path):
    """Also in a critic whose head still says 0 everywhere."""
    engine = LocalEngine(make_toy("Llama", tmp_path), SHORT, save_memory=True)
    for layer in getattr(engine, kind).model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    with pytest.raises(UserError, match=f"the {kind} gives other numbers while it trains"):
        probe(engine, PROBLEMS, SHORT)
    for learner in (engine.actor, engine.critic):
        learner.save_memory = False  # the mode of `step` has no dropout then
    probe(engine, PROBLEMS, SHORT)


NOISE = {
    "OPT": ("dropout", "attention_dropout", "layerdrop"),
    "GPT-2": ("resid_pdrop", "attn_pdrop", "embd_pdrop"),
    "Falcon": ("attention_dropout", "hidden_dropout"),
    "BLOOM": ("attention_dropout", "hidden_dropout"),
    "Mixtral": ("attention_dropout", "router_jitter_noise"),
}


@pytest.mark.parametrize("name", NOISE)
def test_a_model_loads_without_its_dropout(name, tmp_path):
    """Whatever its config calls it, module or number."""
    folder = make_toy(name, tmp_path, **dict.fromkeys(NOISE[name], 0.3))
    look(folder, dataclasses.replace(SHORT, advantage="group"), save_memory=True)


def test_a_layer_that_cannot_run_is_told_in_one_line(tmp_path):
    engine = LocalEngine(make_toy("Llama", tmp_path), SHORT)
    engine.actor.model.model.layers[0].self_attn.q_proj = torch.nn.Linear(64, 60)
    with pytest.raises(UserError, match=r"does not run in the sampler \(RuntimeError: .*Use another model") as error:
        probe(engine, PROBLEMS, SHORT)
    assert "\n" not in str(error.value)


def test_bfloat16_may_round_but_not_err(tmp_path):
    folder = make_toy("Phi 3 LongRoPE", tmp_path)
    within = Config(max_prompt_tokens=22, max_new_tokens=10, micro_batch=6)
    problems = [dataclasses.replace(p, prompt=p.prompt[:20]) for p in PROBLEMS]
    gaps = probe(LocalEngine(folder, within, autocast=True), problems, within)
    assert gaps.keys() == {"sampler", "actor alone", "actor training", "critic alone", "critic training"}
    with pytest.raises(UserError, match="would train on wrong numbers"):
        look(folder, autocast=True)


def test_a_refused_model_leaves_no_run_folder(tmp_path, capsys):
    folder = make_toy("Phi 3 LongRoPE", tmp_path / "model")
    words = ["--max-prompt-tokens", "400", "--max-new-tokens", "40", "--preset", "grpo", "--device", "cpu"]
    words += ["--task", "chain", "--steps", "0", "--eval-problems", "2"]
    assert main(["train", "--model", str(folder), "--run", str(tmp_path / "run"), *words]) == 1
    assert "would train on wrong numbers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Stale(LocalSampler):
    """Takes the learner's weights once, and says that it has the new ones."""

    def sync(self, actor):
        super().sync(actor)
        self.kept = getattr(self, "kept", None) or copy.deepcopy(actor.model)
        self.model = self.kept


def test_a_gap_that_grows_ends_the_run(tiny_model, chain, small, tmp_path):
    config = small("grpo", steps=4, warmup=1)
    engine = LocalEngine(tiny_model, config)
    engine.sampler = Stale(engine.tokenizer, config.max_new_tokens)
    probe(engine, chain.train_problems(0, 3, 0), config)
    write_config(
        tmp_path / "run", config, {"preset": "grpo", "task": "chain", "task_options": {}, "model": "", "critic": None}
    )
    lines = run_training(config, chain, engine, tmp_path / "run", save_every=1)
    assert [next(lines)["step"], next(lines)["step"]] == [0, 1]
    with pytest.raises(UserError, match="step 2: policy/sampler_gap_mean has grown to"):
        next(lines)
    resumed = LocalEngine(tiny_model, config)
    resumed.load(tmp_path / "run/checkpoint")
    assert resumed.progress.step == 1
