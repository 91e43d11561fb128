"""Sweeps: their tables of constants make sense, their tasks are what they claim, and a stopped sweep goes on."""

import csv
import dataclasses

import numpy as np
import pytest

from minivapo.interfaces import UserError
from minivapo.study.sweeps import STUDIES, SWEEPS, machinery
from minivapo.study.sweeps.rare_choice import ROLLOUTS, rollouts_to_half

CASES = [(sweep, point) for sweep in STUDIES.values() for point in sweep.points]


@pytest.mark.parametrize(("sweep", "point"), CASES)
def test_arms_differ_and_share_their_constants(sweep, point):
    configs = [machinery.run_config(sweep, machinery.Run(sweep.name, point, arm, 3)) for arm in sweep.arms]
    learned = [c for c, arm in zip(configs, sweep.arms, strict=True) if arm not in sweep.critics]
    assert len(set(learned)) == len(learned)
    assert {c.seed for c in configs} == {3}
    shared = {(c.actor_lr, c.critic_lr) for c in configs}
    assert len(shared) == 1


@pytest.mark.parametrize("sweep", STUDIES.values(), ids=lambda sweep: sweep.name)
def test_further_rates_change_nothing_but_the_rates(sweep):
    point = sweep.points[0]
    extra = sweep.names[len(sweep.arms) :]
    assert len(extra) == sweep.bracketed * len(sweep.rates)
    for name in extra:
        arm, rate = name.split(machinery.RATE)
        own, other = (machinery.run_config(sweep, machinery.Run(sweep.name, point, a, 3)) for a in (arm, name))
        assert other.actor_lr == float(rate) != own.actor_lr
        assert other.critic_lr / other.actor_lr == pytest.approx(own.critic_lr / own.actor_lr)
        assert dataclasses.replace(other, actor_lr=own.actor_lr, critic_lr=own.critic_lr) == own


@pytest.mark.once
@pytest.mark.parametrize(("sweep", "point"), CASES)
def test_tasks_judge_their_demonstrations_both_ways(sweep, point):
    task = sweep.task(point)
    config = machinery.run_config(sweep, machinery.Run(sweep.name, point, next(iter(sweep.arms)), 0))
    rng = np.random.default_rng(0)
    verdicts = []
    for problem in task.train_problems(0, 600, 0):
        words = task.demonstrate(problem, rng)
        assert {*words, *problem.prompt.split()} <= set(task.words)
        assert len(words) < config.max_new_tokens
        assert len(problem.prompt.split()) < config.max_prompt_tokens
        verdicts += task.judge([problem], [" ".join(words)])
    assert True in verdicts or point == 0.003  # once in 333 there
    assert False in verdicts


def test_rollouts_to_half_interpolates_and_ends_at_the_limit():
    line = lambda p, accuracy=0.05: {"probability": p, "reward/accuracy": accuracy}  # noqa: E731
    assert rollouts_to_half([line(0.1), line(0.5)]) == pytest.approx(2)
    assert rollouts_to_half([line(0.25), line(1.0)]) == pytest.approx(1.5)  # log .5 is half-way from .25 to 1
    assert rollouts_to_half([line(0.1)] * 3) == ROLLOUTS


@pytest.fixture
def tiny():
    """A sweep of seconds: two rollouts of sixteen responses."""
    sweep = SWEEPS["group-sampling"]
    small = {"batch_size": 16, "mini_batch": 16, "steps": 2, "value_pretrain_steps": 1}
    constants = sweep.constants
    return dataclasses.replace(
        sweep, points=(4,), constants=lambda x: constants(x) | small, base=machinery.Base(steps=10), rates=()
    )


def test_a_sweep_keeps_what_is_done_and_writes_its_csv(tiny, tmp_path):
    runs = machinery.plan(tiny, [5, 6])
    for run in runs[:4]:
        machinery.train_run(tiny, run, tmp_path)
    rows = machinery.table_rows(tiny, [5, 6], tmp_path)
    assert [(r["arm"], r["seed"]) for r in rows] == [(r.arm, r.seed) for r in runs[:4]]
    machinery.write_csv(rows, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        written = list(csv.DictReader(file))
    assert {"sweep", "axis", "arm", "seed", "score", "commit"} <= written[0].keys()
    assert [float(r["score"]) for r in written] == [r["score"] for r in rows]
    assert {r["base"] for r in rows} == {5 % machinery.BASES, 6 % machinery.BASES}


@pytest.mark.once
def test_a_run_is_the_same_again(tiny, tmp_path):
    run = machinery.plan(tiny, [5])[0]
    names = ("reward/accuracy", "actor/loss", "policy/entropy")
    first, second = (machinery.train_run(tiny, run, tmp_path / name)["lines"] for name in ("a", "b"))
    assert [[m[n] for n in names] for m in first] == [[m[n] for n in names] for m in second]


def test_an_unknown_sweep_is_one_line():
    with pytest.raises(UserError, match="token-loss"):
        machinery.find("nothing")
