"""The oracle critic: what is still to be done, and that its values are the chances that come true."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivapo.interfaces import Problem, make_rollout
from minivapo.local import LocalEngine
from minivapo.responses import encode_prompt, pad_id
from minivapo.study.oracle import OracleCritic
from minivapo.tasks import BASES
from minivapo.tasks.chain import Chain, ChainSpec, Proof
from minivapo.vapo import PRESETS, collect, estimate_advantages

pytestmark = pytest.mark.once

PROBLEM = Problem("4 A inc B twist C add3 ?", "7", "x")  # 5, 4, 7


def test_pending_by_hand():
    words = ["A", "hm", "5", "B", "so", "careful", "5", "twist", "4", "C", "ok", "7", "=", "7", "<eos>"]
    states = Proof().pending(PROBLEM, words)
    whole = ["inc", "twist", "add3", "="]
    assert states[:3] == [whole] * 3
    assert states[3:6] == [whole[1:]] * 3
    assert states[6:9] == [["careful twist", "add3", "="]] * 3
    assert states[9:12] == [["add3", "="]] * 3
    assert states[12:] == [["="]] * 3


def test_pending_is_none_after_a_slip():
    states = Proof().pending(PROBLEM, ["A", "hm", "5", "B", "so", "9", "C", "ok", "7", "=", "7"])
    assert states[5] == ["twist", "add3", "="]  # before the wrong digit all was well
    assert states[6:] == [None] * 5


@given(words=st.lists(st.sampled_from(["A", "B", "C", "5", "4", "7", "=", "careful", "twist", "hm", "<eos>", "٣"])))
def test_pending_speaks_of_every_token_and_never_raises(words):
    assert len(Proof().pending(PROBLEM, words)) == len(words)


def test_it_wants_a_task_where_a_slip_is_final():
    with pytest.raises(ValueError, match="chain cannot tell"):
        OracleCritic(Chain(), None)


@pytest.fixture(scope="module")
def engine():
    """The shipped base with 384 responses of its own to short programs."""
    engine = LocalEngine(BASES / "chain", PRESETS["grpo"])
    engine.sampler.sync(engine.actor)
    return engine


def test_values_are_calibrated(engine):
    """Among states of like value, that share of the responses is right: the definition of a value."""
    task = Proof(ChainSpec(min_steps=3, max_steps=8, long_tail=False, hard_share=0.2, every_line=True))
    critic = OracleCritic(task, engine.tokenizer)
    problems = task.train_problems(0, 384, 0)
    prompts = [encode_prompt(engine.tokenizer, p.prompt, 512) for p in problems]
    samples = engine.sampler.generate(prompts, 1, 0, engine.actor.version)
    rollout = make_rollout(prompts, samples, list(range(384)), pad_id(engine.tokenizer))
    rollout.problems = problems
    texts = [" ".join(engine.tokenizer.convert_ids_to_tokens(s.tokens[:-1])) for s in samples]
    rollout.correct = torch.tensor([bool(v) for v in task.judge(problems, texts)])
    critic.forward(rollout)  # counts
    values = critic.forward(rollout)["values"]
    right = rollout.correct[:, None].expand_as(rollout.mask)
    for low, high in ((0.0, 0.01), (0.05, 0.35), (0.35, 0.65), (0.65, 0.9), (0.9, 1.01)):
        here = rollout.mask & (values >= low) & (values < high)
        rows = int(here.any(1).sum())
        assert rows > 20
        assert float(values[here].mean()) == pytest.approx(float(right[here].float().mean()), abs=3 / np.sqrt(rows))
    assert not values[~rollout.mask].any()


def test_it_stands_in_the_loop_and_comes_back(engine, tmp_path):
    config = PRESETS["vapo"]
    task = Proof()
    engine.critic = OracleCritic(task, engine.tokenizer)
    rollout = collect(config.__class__(batch_size=16, mini_batch=16, group_size=4), task, engine, "train")
    rollout.values = engine.critic.forward(rollout)["values"]
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(config, rollout)
    assert rollout.advantages.isfinite().all()
    engine.critic.save(tmp_path / "critic")
    again = OracleCritic(task, engine.tokenizer)
    again.load(tmp_path / "critic")
    assert (again.tried, again.done, again.version) == (
        engine.critic.tried, engine.critic.done, engine.critic.version,
    )  # fmt: skip
