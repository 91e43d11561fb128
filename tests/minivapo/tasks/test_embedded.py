"""The embedded tasks: what is held out, what the verifiers accept, and where reasoning first goes wrong."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivapo.interfaces import UserError
from minivapo.tasks import TASKS, make_task
from minivapo.tasks.base import demonstration_batch, make_tokenizer
from minivapo.tasks.chain import EASY, HARD, LABELS, Chain, Proof
from minivapo.tasks.embedded import is_held_out

pytestmark = pytest.mark.once

ALL = pytest.mark.parametrize("task", [Chain(), Proof()], ids=lambda t: t.name)


@ALL
def test_training_never_contains_a_held_out_problem(task):
    held_out = {p.prompt for p in task.test_problems(64)}
    training = {p.prompt for seed in (0, 1) for p in task.train_problems(0, 200, seed)}
    assert len(held_out) == 64
    assert not held_out & training
    assert all(is_held_out(p) for p in held_out)
    assert not any(is_held_out(p) for p in training)


@ALL
def test_the_stream_of_problems_is_fixed_by_its_seed(task):
    whole = task.train_problems(0, 20, 5)
    assert task.train_problems(7, 6, 5) == whole[7:13]
    assert task.train_problems(0, 20, 6) != whole
    assert task.test_problems(10) == task.test_problems(30)[:10]


@ALL
def test_a_problem_fits_the_vocabulary(task):
    tokenizer = make_tokenizer(task.words)
    rng = np.random.default_rng(0)
    for problem in task.train_problems(0, 30, 0):
        words = [*problem.prompt.split(), *task.demonstrate(problem, rng)]
        assert set(words) <= set(task.words)
        assert tokenizer.unk_token_id not in tokenizer(" ".join(words))["input_ids"]


@ALL
@given(response=st.one_of(st.text(), st.text(alphabet="0123456789= ?\x00done+*-"), st.binary().map(lambda b: str(b))))
def test_no_response_makes_the_verifier_raise(task, response):
    problem = task.train_problems(0, 1, 0)[0]
    assert task.judge([problem], [response]) in ([True], [False])
    task.first_error(problem, response.split())


@ALL
@pytest.mark.parametrize(
    "response",
    ["= " * 500_000, "9**9**9", "__import__('os').abort()", "\x00" * 1000, "\ud800", "= ٣", "=\n\n", "done" * 100_000],
    ids=["megabyte", "power", "code", "nul", "surrogate", "arabic", "empty", "long"],
)
def test_hostile_responses_are_wrong(task, response):
    assert task.judge(task.train_problems(0, 3, 0), [response] * 3) == [False] * 3


def solve(prompt):
    """The answer of a chain prompt, by reading it as a person would."""
    first, *rest = prompt.removesuffix(" ?").split()
    digit = int(first)
    for operation in rest[1::2]:
        digit = HARD[operation][digit] if operation in HARD else (digit + EASY[operation]) % 10
    return digit


def test_chain_accepts_the_right_last_answer_and_nothing_else():
    task = Chain()
    for problem in task.train_problems(0, 30, 0):
        right = solve(problem.prompt)
        wrong = (right + 1) % 10
        cases = {
            f"= {right}": True,
            f"A hm so well 3 = {right}": True,
            f"= {wrong} = {right}": True,
            f"= {right} = {wrong}": False,
            f"= {right} {right}": False,
            f"= {wrong}": False,
            f"{right}": False,
            f"= {right} =": False,
            "": False,
        }
        assert task.judge([problem] * len(cases), list(cases)) == list(cases.values())
        assert problem.answer == str(right)


def test_chain_first_error_by_hand():
    task = Chain()
    problem = next(p for p in task.train_problems(0, 200, 0) if len(p.prompt.split()) == 2 + 2 * 2)
    digits = [solve(" ".join(problem.prompt.split()[: 1 + 2 * k]) + " ?") for k in (1, 2)]
    one, two = map(str, digits)
    bad = str((digits[0] + 1) % 10)
    good = ["A", "hm", one, "B", two, "=", two]
    assert task.first_error(problem, good) is None
    assert task.first_error(problem, ["A", "hm", bad, "B", two, "=", two]) == 2
    assert task.first_error(problem, ["B", "hm", one]) == 0
    assert task.first_error(problem, ["A", one, "=", one]) == 2
    assert task.first_error(problem, ["=", two]) == 0


def test_proof_wants_every_line_right():
    proof, chain = Proof(), Chain()
    for problem in proof.train_problems(0, 20, 0):
        operations = problem.prompt.split()[2:-1:2]
        assert 8 <= len(operations) <= 28
        digits = [solve(" ".join(problem.prompt.split()[: 1 + 2 * k]) + " ?") for k in range(1, len(operations) + 1)]
        lines = [f"{label} hm {digit}" for label, digit in zip(LABELS, digits, strict=False)]
        end = f"= {digits[-1]}"
        whole = " ".join([*lines, end])
        cases = [
            whole,
            " ".join([*lines[:-1], end]),  # a line left out
            " ".join([lines[0][:-1] + str((digits[0] + 1) % 10), *lines[1:], end]),  # a slip that does not matter
            end,  # a guess
        ]
        assert proof.judge([problem] * 4, cases) == [True, False, False, False]
        assert chain.judge([problem] * 4, cases) == [True] * 4


def test_demonstrations_are_noisy_but_often_right():
    task = Chain()
    rng = np.random.default_rng(0)
    problems = task.train_problems(0, 300, 0)
    share = np.mean(task.judge(problems, [" ".join(task.demonstrate(p, rng)) for p in problems]))
    assert 0.1 < share < 0.6


@ALL
def test_demonstration_batches_predict_responses_only(task):
    tokenizer = make_tokenizer(task.words)
    tokens, mask, lengths = demonstration_batch(task, tokenizer, 4, (0,))
    for row, wanted, length in zip(tokens.tolist(), mask.bool().tolist(), lengths.tolist(), strict=True):
        question = row.index(tokenizer.convert_tokens_to_ids("?"))
        assert wanted == [question < t < length for t in range(len(row))]
        assert row[length - 1] == tokenizer.eos_token_id


def test_tasks_by_name():
    assert [make_task(name).name for name in TASKS] == list(TASKS) == ["locks", "chain", "proof"]
    with pytest.raises(UserError, match=r"no task 'chian'; choose one of locks, chain, proof, "):
        make_task("chian")
