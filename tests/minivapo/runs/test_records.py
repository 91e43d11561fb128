"""What a run keeps for people: its task, held-out answers, and true values where the task can tell them."""

import dataclasses
import json

import pytest

from minivapo.interfaces import UserError
from minivapo.local import LocalEngine
from minivapo.runs.folder import write_config
from minivapo.runs.records import write_task
from minivapo.runs.training import run_training
from minivapo.study.oracle import OracleCritic
from minivapo.tasks import BASES
from minivapo.tasks.chain import Chain, Proof
from minivapo.tasks.locks import Locks
from minivapo.vapo import PRESETS


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def response_ids(rollout, row):
    end = int(rollout.totals[row])
    return rollout.tokens[row, end - int(rollout.lengths[row]) : end].tolist()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, engine): two steps on the locks, with evaluations before and after."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = dataclasses.replace(
        PRESETS["vapo"], steps=2, batch_size=32, mini_batch=16, group_size=4, eval_problems=20, eval_samples=2,
        critic_init="policy", value_pretrain_steps=1, reward_wrong=-1.0, max_new_tokens=96,
    )  # fmt: skip
    engine = LocalEngine(BASES / "locks", config)
    write_config(folder, config, {})
    list(run_training(config, Locks(), engine, folder))
    return folder, engine


def test_the_same_held_out_problems_are_kept_at_each_evaluation(run):
    rows = lines(run[0] / "held_out.jsonl")
    before, after = ([row for row in rows if row["step"] == step] for step in (0, 2))
    assert len(before) == len(after) == 16 and len(rows) == 32
    expected = Locks().test_problems(16)
    for some in (before, after):
        assert [(row["prompt"], row["answer"], row["id"]) for row in some] == [
            (problem.prompt, problem.answer, problem.id) for problem in expected
        ]
        for problem, row in zip(expected, some, strict=True):
            assert Locks().judge([problem], [row["response"]]) == [row["correct"]]


def test_true_values_are_the_oracles_in_units_of_reward(run):
    """A right prefix is worth what the oracle says, and what follows an error the reward of a wrong response."""
    folder, engine = run
    rollout = engine.rollout
    records = [r for r in lines(folder / "samples.jsonl") if r["step"] == 2]
    chances = OracleCritic(Locks(), engine.tokenizer).forward(rollout)["values"]
    seen = 0
    for record in records:
        values, wrong = record["true_values"], record["first_error"]
        if wrong is not None:
            assert values[wrong + 1 :] == [-1.0] * (len(values) - wrong - 1)
            seen += 1
        elif record["correct"]:
            assert values[-1] == pytest.approx(1.0, abs=0.1)
        row = next(
            i for i, problem in enumerate(rollout.problems)
            if problem.prompt == record["prompt"] and response_ids(rollout, i) == record["token_ids"]
        )  # fmt: skip
        end, length = int(rollout.totals[row]), int(rollout.lengths[row])
        assert values == pytest.approx((2 * chances[row, end - length : end] - 1).tolist(), abs=1e-5)
    assert seen


def test_a_task_that_cannot_tell_has_no_true_values(tiny_model, chain, small, tmp_path):
    config, run = small("grpo", steps=1, eval_problems=2), tmp_path / "run"
    write_config(run, config, {})
    list(run_training(config, chain, LocalEngine(tiny_model, config), run))
    assert {row["true_values"] for row in lines(run / "samples.jsonl")} == {None}


@pytest.mark.parametrize("task", [Locks(), Chain(), Proof()], ids=lambda task: task.name)
def test_an_example_is_right(task, tmp_path):
    write_task(tmp_path, task, 0)
    found = json.loads((tmp_path / "task.json").read_text())
    problem, response = task.example()
    assert task.judge([problem], [response]) == [True]
    assert found == {
        "name": task.name, "about": task.about, "prompt": problem.prompt, "answer": problem.answer, "response": response
    }  # fmt: skip
    assert 1 <= task.about.count(".") <= 2


class Plain:
    """A task with nothing but the three methods."""

    name, stop = "plain", ()

    def train_problems(self, start, count, seed):
        return Locks().train_problems(start, count, seed)


def test_a_task_without_an_example_shows_its_first_problem(tmp_path):
    write_task(tmp_path, Plain(), 3)
    found, problem = json.loads((tmp_path / "task.json").read_text()), Locks().train_problems(0, 1, 3)[0]
    assert found == {
        "name": "plain", "about": "", "prompt": problem.prompt, "answer": problem.answer, "response": None
    }  # fmt: skip


@pytest.mark.parametrize("example", [lambda: None, lambda: ("a", "b"), lambda: 3 + "x"])
def test_a_wrong_example_is_refused_in_one_line(example, tmp_path):
    task = Plain()
    task.example = example
    with pytest.raises(UserError, match=r"^example\(\) of the task 'plain' must give a Problem and [^\n]*$"):
        write_task(tmp_path, task, 0)
    assert not (tmp_path / "task.json").exists()
