"""The gradient of a mini-batch is the same for every split into micro-batches and ranks, for every loss and preset."""

import copy
import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from fakes import on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st

from minivapo import local, passes
from minivapo.interfaces import Sample, World, make_rollout
from minivapo.loading import load_actor, load_critic
from minivapo.local import LocalEngine, LocalLearner
from minivapo.vapo import (
    PRESETS,
    actor_loss,
    critic_loss,
    estimate_advantages,
    group_advantages,
    reward_model_loss,
    train_step,
    update,
    whiten,
)

pytestmark = pytest.mark.once  # what a family of models makes of a pass is checked in test_passes.py, at both ends
ROWS = 12
LOSSES = {"actor": actor_loss, "critic": critic_loss, "reward-model": reward_model_loss}


def config_of(preset, **changes):
    """A preset for 12 rows, nothing clipped by norm, so that gradients can be compared."""
    size = {
        "batch_size": ROWS,
        "mini_batch": ROWS,
        "group_size": min(4, PRESETS[preset].group_size),
        "max_grad_norm": 1e12,
        "alpha": 0.3,
    }
    return dataclasses.replace(PRESETS[preset], **(size | changes))


@pytest.fixture(autouse=True, params=[0.0, math.inf], ids=["plain", "shared"])
def pays(request, monkeypatch):
    """Each prompt computed for each row, or once for all rows of a micro-batch, these cut wherever lengths differ."""
    monkeypatch.setattr(passes, "PAYS", request.param)
    monkeypatch.setattr(local, "PRICE", 0)
    if "float64" in request.fixturenames:  # norms of transformers go through float32, which rounds at another place
        monkeypatch.setattr(torch, "float32", torch.float64)


@pytest.fixture(scope="module")
def networks(tiny_model):
    """An actor and a critic in float64; the critic's head is not zero."""
    actor, critic = load_actor(tiny_model).double(), load_critic(tiny_model).double()
    torch.nn.init.normal_(critic.score.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return {"actor": actor, "critic": critic}


def rollout_of(config, networks, seed, verdicts=None):
    """A ragged rollout of random tokens, scored by the networks; the verifier failed on row 5."""
    g = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=g))

    prompts, samples = [], []
    for i in range(ROWS):
        if i % config.group_size == 0:
            prompt = [draw(4, 60) for _ in range(draw(1, 6))]
        n = draw(1, 20)
        prompts.append(prompt)
        samples.append(Sample([draw(4, 60) for _ in range(n)], [-1.0] * n, i % 3 > 0))
    rollout = make_rollout(prompts, samples, [i // config.group_size for i in range(ROWS)], 0)
    rollout.judged[5] = False
    drawn = torch.rand(ROWS, generator=g) < 0.5
    rollout.correct = (drawn if verdicts is None else verdicts) & rollout.judged
    rollout.mask &= rollout.judged[:, None]
    rollout.rewards[torch.arange(ROWS), rollout.last] = rollout.correct.double()
    rollout.outcome = group_advantages(rollout.rewards.sum(1), rollout.judged, config.group_size)
    actor = LocalLearner(networks["actor"], "actor", config)
    noise = torch.randn(rollout.tokens.shape, generator=g)
    rollout.old_logprobs = actor.forward(rollout)["logprobs"] + 0.3 * noise  # ratios on both sides of both clips
    rollout.sampled_logprobs = rollout.old_logprobs + 0.1 * noise.flip(0)
    rollout.ref_logprobs = rollout.old_logprobs - 0.2 * noise if config.kl_coef else None
    rollout.values = LocalLearner(networks["critic"], "critic", config).forward(rollout)["values"] + 0.2 * noise
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(config, rollout)
    if rollout.returns is None:  # group advantages: the critic's loss is still to be checked
        rollout.returns = rollout.rewards
    return rollout


class Splitting(LocalLearner):
    """A learner that cuts its rows as it is told, instead of by length."""

    parts: list[list[int]] | None = None

    def micro_batches(self, rollout):
        return self.parts or super().micro_batches(rollout)


class Plain(Splitting):
    """A learner that computes logits for every token, prompts too."""

    def outputs(self, rows, entropy):
        if self.kind == "critic":
            return super().outputs(rows, entropy)
        attention = torch.arange(rows.tokens.shape[1]) < rows.totals[:, None]
        scores = torch.log_softmax(self.model(input_ids=rows.tokens, attention_mask=attention).logits, -1)
        padded = torch.nn.functional.pad(scores[:, :-1], (0, 0, 1, 0))
        out = {"logprobs": padded.gather(-1, rows.tokens[..., None])[..., 0]}
        return out | ({"entropy": -(padded.exp() * padded).sum(-1)} if entropy else {})


def counts_of(rollout):
    """Counts over the whole mini-batch, as `update` takes them."""
    positive = (rollout.mask & rollout.correct[:, None]).sum()
    return {
        "tokens": float(rollout.mask.sum()),
        "responses": float(rollout.judged.sum()),
        "positive_tokens": float(positive),
        "teaching_tokens": float(rollout.mask.sum()),
    }


def gradient(config, networks, name, rollout, parts, learner_class=Splitting):
    """(gradient as one vector, sums, maxima) of one step at learning rate 0 over the given micro-batches."""
    kind = "actor" if name == "actor" else "critic"
    learner = learner_class(networks[kind], kind, config)
    learner.parts = parts
    sums, maxima = learner.step(rollout, LOSSES[name](config, counts_of(rollout)), 0.0)
    return torch.cat([p.grad.flatten() for p in learner.model.parameters()]), sums, maxima


@pytest.mark.parametrize("preset", PRESETS)
def test_logits_that_are_not_computed_change_no_gradient(preset, networks, float64):
    config = config_of(preset)
    rollout = rollout_of(config, networks, seed=7)
    parts = [[0, 3, 9], [1, 2, 4, 5, 6, 7], [8], [10, 11]]
    plain, sums, _ = gradient(config, networks, "actor", rollout, parts, Plain)
    found, found_sums, _ = gradient(config, networks, "actor", rollout, parts)
    assert plain.norm() > 0
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-10)
    assert found_sums == pytest.approx(sums, rel=1e-10, abs=1e-10)


def test_outputs_on_responses_are_those_of_the_plain_network(networks, float64):
    config = config_of("vapo")
    rollout = rollout_of(config, networks, seed=3)
    found = LocalLearner(networks["actor"], "actor", config).forward(rollout)
    plain = Plain(networks["actor"], "actor", config).forward(rollout)
    for name, x in plain.items():
        torch.testing.assert_close(found[name][rollout.mask], x[rollout.mask], rtol=0, atol=1e-12)


def partition(order, cuts):
    """`order` cut at the given places."""
    edges = [0, *sorted({c for c in cuts if 0 < c < len(order)}), len(order)]
    return [order[a:b] for a, b in itertools.pairwise(edges)]


SPLITS = st.builds(partition, st.permutations(range(ROWS)), st.lists(st.integers(1, ROWS - 1), max_size=ROWS))

VARIANTS = [(preset, {}) for preset in PRESETS] + [
    ("vapo", {"kl_coef": 0.1, "value_clip": 0.1, "whiten": True, "importance_cap": 1.5}),
    ("vapo-wo-token-loss", {"kl_coef": 0.1, "importance_cap": 1.5}),
]
CASES = [("actor", *variant) for variant in VARIANTS]
CASES += [("critic", *variant) for variant in VARIANTS if PRESETS[variant[0]].advantage == "gae"]
CASES += [("reward-model", "vapo", {})]  # its loss reads nothing of the configuration


@pytest.mark.parametrize(("name", "preset", "changes"), CASES, ids=lambda x: x if isinstance(x, str) else "+".join(x))
@pytest.mark.usefixtures("float64")
def test_every_split_into_micro_batches_gives_the_same_gradient(networks, preset, changes, name):
    config = config_of(preset, **changes)
    rollout = rollout_of(config, networks, seed=1)
    whole, sums, maxima = gradient(config, networks, name, rollout, [list(range(ROWS))])
    assert whole.norm() > 1e-3

    @settings(max_examples=4, database=None)
    @given(SPLITS)
    def holds(parts):
        split, split_sums, split_maxima = gradient(config, networks, name, rollout, parts)
        torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-10)
        assert split_sums == pytest.approx(sums, rel=1e-10, abs=1e-12)
        assert split_maxima == pytest.approx(maxima, rel=1e-9)

    holds()


@pytest.mark.usefixtures("float64")
def test_micro_batch_of_the_config_changes_nothing_but_the_split(networks):
    found = []
    for micro_batch in (1, 5, ROWS):
        config = config_of("vapo", micro_batch=micro_batch)
        rollout = rollout_of(config, networks, seed=2)
        learner = LocalLearner(networks["actor"], "actor", config)
        assert sorted(i for part in learner.micro_batches(rollout) for i in part) == list(range(ROWS))
        assert max(map(len, learner.micro_batches(rollout))) <= micro_batch
        found.append(gradient(config, networks, "actor", rollout, None)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[0], found[2], rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_without_a_correct_response_the_gradient_is_finite(networks):
    config = config_of("vapo")
    rollout = rollout_of(config, networks, seed=3, verdicts=torch.zeros(ROWS, dtype=torch.bool))
    whole, sums, _ = gradient(config, networks, "actor", rollout, [list(range(ROWS))])
    split, _, _ = gradient(config, networks, "actor", rollout, [[i] for i in range(ROWS)])
    assert sums["loss_positive"] == 0
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(split, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LOSSES)
def test_a_row_that_could_not_be_judged_has_no_part_in_any_loss(networks, name):
    """Row 5: its tokens, old log-probs and values may be anything."""
    config = config_of("vapo", kl_coef=0.1)
    rollout = rollout_of(config, networks, seed=4)
    before = gradient(config, networks, name, rollout, [list(range(ROWS))])
    others = [i for i in range(ROWS) if i != 5]
    for x in (rollout.old_logprobs, rollout.sampled_logprobs, rollout.ref_logprobs, rollout.values):
        x[5] = 7.0
    rollout.tokens[5, 0] = 9
    after = gradient(config, networks, name, rollout, [list(range(ROWS))])
    without = gradient(config, networks, name, rollout, [others])
    torch.testing.assert_close(after[0], before[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(without[0], before[0], rtol=1e-10, atol=1e-10)


class Recorder:
    """A learner behind `update` that keeps the rows that this rank has of every mini-batch, and their gradient."""

    def __init__(self, model, kind, config):
        self.inner, self.numbers, self.gradients, self.version = LocalLearner(model, kind, config), [], [], 0

    def step(self, rows, loss_fn, lr):
        self.numbers.append(rows.number.tolist())
        result = self.inner.step(rows, loss_fn, 0.0)
        self.version += 1
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.inner.model.parameters()]))
        return result


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("preset", "name"),
    [("vapo", name) for name in LOSSES] + [(preset, "actor") for preset in ("vapo-wo-token-loss", "dapo", "grpo")],
)
def test_any_number_of_ranks_gives_the_same_gradient(networks, preset, name, size):
    """The real `update` on rows dealt out to ranks, counts summed over ranks: gradients add up to the one-rank ones."""
    kind = "actor" if name == "actor" else "critic"
    config = config_of(preset, mini_batch=6, micro_batch=2)
    rollout = rollout_of(config, networks, seed=5)

    def gradients(world):
        rows = []
        for start in range(0, ROWS, 6):
            share = 6 // world.size
            rows += range(start + world.rank * share, start + (world.rank + 1) * share)
        model = copy.deepcopy(networks[kind])
        engine = SimpleNamespace(**{"world": world, kind: Recorder(model, kind, config)})
        metrics = update(config, rollout.rows(rows), engine, kind, LOSSES[name], 1)
        return getattr(engine, kind).gradients, metrics

    (alone, metrics), *_ = on_ranks(1, gradients)
    together = on_ranks(size, gradients)
    for step in range(2):
        total = sum(grads[step] for grads, _ in together)
        torch.testing.assert_close(total, alone[step], rtol=1e-10, atol=1e-10)
    for _, found in together:
        for key in found:
            if not key.endswith("grad_norm"):
                assert found[key] == pytest.approx(metrics[key], rel=1e-9, abs=1e-12), key


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("preset", "changes", "spared"),
    [(*variant, {5}) for variant in VARIANTS if PRESETS[variant[0]].advantage == "gae" and "kl_coef" not in variant[1]]
    + [
        ("vapo", {"kl_coef": 0.1}, set()),
        ("grpo", {}, set(range(8))),
        ("dapo", {}, set(range(8))),
        ("grpo", {"positive_coef": 0.1}, {0, 1, 2, 3, 5}),
        ("dapo", {"kl_coef": 0.1}, set()),
        ("grpo", {"whiten": True}, {5}),
    ],
    ids=lambda x: x if isinstance(x, str) else "+".join(map(str, x)),
)
def test_rows_that_are_spared_a_pass_have_no_gradient(networks, preset, changes, spared):
    """The first of three groups is all wrong, the second all right, and its row 5 could not be judged."""
    config = config_of(preset, **changes)
    verdicts = torch.tensor([False] * 4 + [True, False] + [True] * 2 + [True, False] * 2)
    rollout = rollout_of(config, networks, seed=1, verdicts=verdicts)
    if config.whiten:
        rollout.advantages = whiten(rollout.advantages, rollout.mask, World())
    whole, sums, _ = gradient(config, networks, "actor", rollout, [list(range(ROWS))])
    engine = SimpleNamespace(world=World(), actor=Recorder(copy.deepcopy(networks["actor"]), "actor", config))
    rollout.number = torch.arange(ROWS)
    metrics = update(config, rollout, engine, "actor", actor_loss, 1)
    assert engine.actor.numbers == [[i for i in range(ROWS) if i not in spared]]
    assert whole.norm() > 1e-3
    torch.testing.assert_close(engine.actor.gradients[0], whole, rtol=1e-10, atol=1e-10)
    for name in ("loss", "loss_policy", "loss_positive"):
        assert metrics[f"actor/{name}"] == pytest.approx(sums[name], rel=1e-10, abs=1e-12)
    teaching = torch.tensor([i not in spared for i in range(ROWS)])
    now = LocalLearner(networks["actor"], "actor", config).forward(rollout)["logprobs"]
    log_ratio = (now - rollout.old_logprobs)[rollout.mask & teaching[:, None]]
    approx_kl = (log_ratio.exp() - 1 - log_ratio).mean()
    assert metrics["actor/approx_kl"] == pytest.approx(float(approx_kl), rel=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [1, 2])
def test_a_mini_batch_in_which_nothing_teaches_is_a_step_all_the_same(networks, size):
    """AdamW's momentum goes on where the gradient is 0; every rank keeps its shortest row."""
    config = config_of("grpo", mini_batch=ROWS, warmup=0, actor_lr=0.01)
    nothing = rollout_of(config, networks, seed=1, verdicts=torch.zeros(ROWS, dtype=torch.bool))
    nothing.number = torch.arange(ROWS)

    def kept(world):
        actor = Recorder(copy.deepcopy(networks["actor"]), "actor", config)
        mine = nothing.rows(range(world.rank, ROWS, world.size))
        return actor, mine, update(config, mine, SimpleNamespace(world=world, actor=actor), "actor", actor_loss, 1)

    for actor, mine, metrics in on_ranks(size, kept):
        assert metrics["actor/approx_kl"] == metrics["actor/loss"] == 0 and metrics["actor/ratio_max"] == 1
        assert actor.numbers == [[int(mine.number[mine.totals.argmin()])]]
        assert actor.gradients[0].norm() == 0

    something = rollout_of(config, networks, seed=1)
    something.number = torch.arange(ROWS)
    weights = []
    for spare in (True, False):
        learner = LocalLearner(copy.deepcopy(networks["actor"]), "actor", config)
        engine = SimpleNamespace(world=World(), actor=learner)
        update(config, something, engine, "actor", actor_loss, 1)
        if spare:
            update(config, nothing, engine, "actor", actor_loss, 1)
        else:
            learner.step(nothing, actor_loss(config, counts_of(nothing)), config.actor_lr)
        weights.append(torch.cat([p.detach().flatten() for p in learner.model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-12)


def test_a_step_at_ratio_one_clips_nothing_and_later_ones_may(tiny_model, chain, small):
    """On policy the first mini-batch has ratio 1: old log-probs are the learner's own, not the sampler's."""
    config = small("grpo", mini_batch=16, reward_correct=1.0, eval_problems=1)
    engine = LocalEngine(tiny_model, config)
    engine.sampler.sync(engine.actor)
    metrics = train_step(config, chain, engine)
    assert metrics["actor/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["actor/clip_low"] == metrics["actor/clip_high"] == 0
    assert abs(metrics["actor/approx_kl"]) < 1e-8
