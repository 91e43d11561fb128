"""locks: its verdict, its first error, its exact values, and the critic that comes with its base."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivapo.local import LocalEngine
from minivapo.options.embedded import fitted
from minivapo.study.sight import measure_sight
from minivapo.tasks import default_model, make_task
from minivapo.tasks.locks import EASY, HARD, KEYS, LABELS, NEUTRAL, PAUSE, RIGHT, WRONG, Locks, LocksSpec
from minivapo.vapo import PRESETS

TASK = Locks()
PROBLEM = TASK.problem(3, 0, ["fox", "hen"])
RIGHT_WORDS = f"hm let me A fox {RIGHT['fox']} ok right then we B hen {RIGHT['hen']} ok".split()


def lines(task, problem, rng, wrong=None):
    """A response whose lock number `wrong` gets the wrong key."""
    words = problem.prompt.split()
    talk, delay, pictures = int(words[0][4:]), int(words[1][5:]), words[3:-1:2]
    out = []
    for i, (label, picture) in enumerate(zip(LABELS, pictures, strict=False)):
        out += [str(rng.choice(choices)) for choices in NEUTRAL[:talk]]
        out += [label, picture, WRONG[picture] if i == wrong else RIGHT[picture]]
        out += [str(rng.choice(choices)) for choices in PAUSE[:delay]]
        out.append("no" if i == wrong else "ok")
    return out


def test_the_verdict_by_hand():
    assert TASK.is_correct(PROBLEM, " ".join(RIGHT_WORDS))
    assert not TASK.is_correct(PROBLEM, " ".join(RIGHT_WORDS[:-1]))
    assert not TASK.is_correct(PROBLEM, " ".join([*RIGHT_WORDS, "ok"]))
    for i, word in enumerate(RIGHT_WORDS):
        for other in ("no", "tin", "B", "hm", word + "x", "٣"):
            if other not in (word, *(NEUTRAL[i % 7] if i % 7 < 3 else ())):
                changed = [*RIGHT_WORDS[:i], other, *RIGHT_WORDS[i + 1 :]]
                assert not TASK.is_correct(PROBLEM, " ".join(changed))
                assert TASK.first_error(PROBLEM, changed) == i


@given(seed=st.integers(0, 10**6), talk=st.sampled_from([0, 3, 8]), delay=st.sampled_from([0, 3, 12]))
def test_pending_falls_by_one_at_each_right_key(seed, talk, delay):
    rng = np.random.default_rng(seed)
    task = Locks(LocksSpec(talk=(talk,), delay=(delay,)))
    problem = task.make(rng)
    count = len(problem.answer.split())
    wrong = int(rng.integers(count))
    states = task.pending(problem, lines(task, problem, rng, wrong))
    width = talk + delay + 4
    for i, state in enumerate(states):
        keys_before = sum(k * width + talk + 2 < i for k in range(count))
        assert (None if keys_before > wrong else count - keys_before) == (state if state is None else len(state))


@given(words=st.lists(st.sampled_from(["hm", "A", "fox", "ok", "no", "<eos>", "٣", *KEYS[:3]]), max_size=40))
def test_any_words_are_judged_and_none_raises(words):
    assert len(TASK.pending(PROBLEM, words)) == len(words)
    assert TASK.is_correct(PROBLEM, " ".join(words)) in (True, False)
    assert TASK.judge([PROBLEM], ["x " * 10**5]) == [False]


def test_demonstrations_are_right_as_often_as_the_spec_says():
    rng = np.random.default_rng(0)
    told = {"easy": [], "hard": []}
    for _ in range(1500):
        problem = TASK.make(rng)
        words = TASK.demonstrate(problem, rng)
        for before, key, check in zip(words, words[1:], words[2:], strict=False):
            if before in RIGHT and key in KEYS:
                right = key == RIGHT[before]
                assert check == ("ok" if right else "no")
                told["easy" if before in EASY else "hard"].append(right)
    assert set(EASY) | set(HARD) == set(RIGHT)
    for kind, share in (("easy", TASK.spec.easy), ("hard", TASK.spec.hard)):
        error = 5 * np.sqrt(share * (1 - share) / len(told[kind]))
        assert np.mean(told[kind]) == pytest.approx(share, abs=error)


@pytest.mark.once
def test_the_shipped_critic_sees_a_slip():
    """The bars: 0.7 of the oracle's explained variance, and 0.6 of its fall within three tokens of the first error."""
    torch.set_num_threads(1)
    config = fitted(PRESETS["vapo"], "locks", critic=True)
    assert (config.critic_init, config.value_pretrain_steps) == ("shipped", 0)
    engine = LocalEngine(default_model("locks"), dataclasses.replace(config, seed=77))
    engine.sampler.sync(engine.actor)
    sight = measure_sight(engine.actor.config, make_task("locks"), engine, responses=1024)
    assert sight.ev_ratio >= 0.7
    assert sight.fall_ratio >= 0.6
    assert sight.explained_variance_oracle > 0.3
