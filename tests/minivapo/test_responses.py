"""A task is user code: what it gives is understood, or refused in one line."""

import dataclasses

import numpy as np
import pytest
import torch
from fakes import NumberTask, fake_engine
from hypothesis import given
from hypothesis import strategies as st

from minivapo.interfaces import UserError
from minivapo.local import LocalEngine
from minivapo.responses import judge, training_problem
from minivapo.tasks.chain import Chain
from minivapo.vapo import Config, evaluate, sample_groups, train


class Saying(Chain):
    """Its verifier returns what it is told to."""

    name = "saying"

    def __init__(self, verdicts):
        super().__init__()
        self.verdicts = verdicts

    def judge(self, problems, responses):
        return self.verdicts


UNDERSTOOD = [
    ([True, False, None], [1.0, 0.0, None]),
    ([1, 0, None], [1.0, 0.0, None]),
    ([1.0, 0.25, 0.0], [1.0, 0.25, 0.0]),
    ((np.True_, np.int64(0), np.float32(0.5)), [1.0, 0.0, 0.5]),
    ([torch.tensor(True), torch.tensor([0.0]), torch.tensor(0.75)], [1.0, 0.0, 0.75]),
    (np.array([True, False, True]), [1.0, 0.0, 1.0]),
    (torch.tensor([0.0, 0.5, 1.0]), [0.0, 0.5, 1.0]),
]


@pytest.mark.parametrize(("verdicts", "wanted"), UNDERSTOOD, ids=str)
def test_verdicts_of_every_kind_are_understood(verdicts, wanted):
    found = judge(Saying(verdicts), [None] * 3, [""] * 3, 5.0)
    assert found == wanted and all(type(x) in (float, type(None)) for x in found)


REFUSED = [
    (["yes", True], "gave 'yes' for a response"),
    ([True, "1"], "gave '1' for a response"),
    ([float("nan"), 1], "gave nan"),
    ([-1, 1], "gave -1"),
    ([2, 1], "gave 2"),
    ([1.5, 1], "gave 1.5"),
    ([[True], True], r"gave \[True\]"),
    ([torch.ones(2), True], "gave tensor"),
    ([object, True], "gave <class 'object'>"),
    (torch.full((2,), float("nan")), "gave nan"),
    ("yes", "gave a str"),
    (None, "gave a NoneType"),
    ({0: True, 1: False}, "gave a dict"),
    (True, "gave a bool"),
    (iter([True, False]), "gave a list_iterator"),
    ([True], "1 verdicts on 2 responses"),
    (np.zeros((3, 2)), "3 verdicts on 2 responses"),
]


@pytest.mark.parametrize(("verdicts", "text"), REFUSED, ids=str)
def test_what_is_no_verdict_is_refused_by_its_value(verdicts, text):
    with pytest.raises(UserError, match=text) as caught:
        judge(Saying(verdicts), [None] * 2, [""] * 2, 5.0)
    assert "saying" in str(caught.value) and "\n" not in str(caught.value)


@given(
    st.lists(st.none() | st.floats(0, 1, width=32), min_size=8, max_size=8),
    st.floats(-2, 0, width=32),
    st.floats(0.125, 2, width=32),
)
def test_a_score_lies_between_the_two_rewards(scores, wrong, right):
    """Two groups of four; against sums written out here."""
    task = NumberTask()
    task.judge = lambda problems, responses: scores
    config = Config(
        advantage="group", group_size=4, batch_size=8, mini_batch=8, reward_wrong=wrong, reward_correct=right
    )
    groups = sample_groups(config, task, fake_engine(), "train", 2)
    for i, group in enumerate(groups):
        mine = scores[4 * i : 4 * i + 4]
        expected = [0.0 if s is None else wrong + s * (right - wrong) for s in mine]
        assert group.rewards.sum(1).tolist() == pytest.approx(expected, abs=1e-6)
        assert group.correct.tolist() == [s is not None and s >= 0.5 for s in mine]
        assert group.judged.tolist() == [s is not None for s in mine]
        known = {s for s in mine if s is not None}
        assert group.mixed.tolist() == [len(known) > 1] * 4


def test_a_task_says_from_what_score_a_response_is_correct():
    task = NumberTask()
    task.judge, task.correct_from = lambda problems, responses: [0.8] * len(responses), 0.9
    config = Config(eval_problems=4)
    assert evaluate(config, task, fake_engine())["eval/accuracy"] == 0
    del task.correct_from
    assert evaluate(config, task, fake_engine())["eval/accuracy"] == 1


class Finite(NumberTask):
    """Ten training problems."""

    def train_problems(self, start, count, seed):
        return super().train_problems(0, 10, seed)[start : start + count]


def test_a_stream_of_problems_that_ends_is_named():
    task = Finite()
    assert training_problem(task, 9, 0) == task.train_problems(9, 1, 0)[0]
    for reads in (Finite.train_problems, lambda self, start, count, seed: [list("abc")[start]]):
        Finite.train_problems = reads
        with pytest.raises(UserError, match="'numbers' gave no training problem number 10"):
            training_problem(task, 10, 0)


def test_a_task_without_held_out_problems_is_named():
    task = NumberTask()
    task.test_problems = lambda count=None: []
    with pytest.raises(UserError, match="'numbers' has no held-out problems"):
        evaluate(Config(), task, fake_engine())


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 12), ("max_grad_norm", 0.5), ("kl_coef", 0.1), ("weight_decay", 0.2), ("advantage", "gae")],
)
def test_an_engine_built_for_another_config_is_refused_by_name(tiny_model, chain, small, name, value):
    config = small("grpo")
    engine = LocalEngine(tiny_model, config)
    with pytest.raises(UserError, match=f"{name} is {value}, but the engine was built with"):
        next(train(dataclasses.replace(config, **{name: value}), chain, engine))
    next(train(dataclasses.replace(config, steps=9, seed=4, actor_lr=1.0), chain, engine))  # what it does not read
