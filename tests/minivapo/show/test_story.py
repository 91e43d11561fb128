"""The paragraph that says what happened in a run."""

import json
from pathlib import Path

import pytest

from minivapo.show.run_files import Run, read_task
from minivapo.show.story import before_and_after, story


def run(*metrics, seconds=38.0, **config):
    settings = {"eval_problems": 512, "eval_samples": 1, **config}
    return Run(Path("run"), {"config": settings}, list(metrics), len(metrics), seconds)


START = {"step": 0, "eval/accuracy": 0.219}
FIRST = {"step": 1, "reward/accuracy": 0.25, "response/length": 42.0, "policy/entropy": 0.5, "actor/clip_high": 0.002}
LAST = FIRST | {"step": 24, "reward/accuracy": 0.99, "policy/entropy": 0.1, "samples": 12288, "eval/accuracy": 0.996}


def test_a_run_with_a_value_model():
    text = story(run(START, FIRST | {"value/explained_variance": 0.42}, LAST | {"value/explained_variance": 0.2}))
    assert text.split(". ") == [
        "24 steps of training took 12,288 responses, 38 s",
        "Held-out accuracy rose from 21.9 % to 99.6 % (95 % interval over 512 problems: 98.6 % to 99.9 %)",
        "Responses went from 42 to 42 tokens on average",
        "The policy's entropy fell from 0.50 to 0.10 nats per token",
        "The value model explained 42.0 % of the variance of the outcomes in the first step and 20.0 % in the last",
        "At most 0.2 % of a step's tokens were clipped above.",
    ]


def test_a_run_that_was_stopped_or_has_not_begun():
    assert story(run(START)) == ""
    text = story(run(START, FIRST, seconds=None))
    assert text.startswith("1 step of training. 25.0 % of the responses of the last step were correct.")


def test_several_samples_per_problem_have_no_interval():
    assert "interval" not in story(run(START, LAST, eval_samples=4))


@pytest.mark.parametrize("odd", [None, "text", float("nan"), float("inf"), []])
@pytest.mark.parametrize("name", [name for name in LAST if name != "step"])
def test_what_is_no_number_is_not_told(name, odd):
    text = story(run(START | {"eval/accuracy": odd}, FIRST, LAST | {name: odd}))
    assert "nan" not in text and "inf" not in text and "None" not in text


def answers(folder, *sides):
    """A run folder whose held-out verdicts at each evaluation are the given letters: r(ight), w(rong), or n(one)."""
    verdict = {"r": True, "w": False, "n": None}
    rows = [
        {"step": 4 * k, "id": str(i), "prompt": f"p{i}", "answer": "a", "correct": verdict[letter], "terminated": True,
         "length": 3, "response": f"{k}-{i}"}
        for k, side in enumerate(sides)
        for i, letter in enumerate(side)
    ]  # fmt: skip
    (folder / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(folder, {}, [], 0, None)


def test_the_same_problems_before_and_after(tmp_path):
    text, pairs = before_and_after(answers(tmp_path, "wwrrwn", "rrrrrr", "wrrwrr"), most=4)
    assert text.startswith("Of 6 held-out problems the base policy solved 2 and the policy after step 8 4: ")
    assert ": 3 gained, 1 lost. " in text
    assert [(a["response"], b["response"]) for a, b in pairs] == [
        ("0-1", "2-1"), ("0-3", "2-3"), ("0-4", "2-4"), ("0-5", "2-5")
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "3\n", '{"step": 0}\n', '{"step": 0, "id": "a", "response": ""}\n', "{\n{}\n"])
def test_without_two_evaluations_there_is_nothing_to_compare(tmp_path, text):
    one = answers(tmp_path, "wr")
    assert before_and_after(one) == ("", [])
    (tmp_path / "held_out.jsonl").write_text(text)
    assert before_and_after(one) == ("", [])
    assert bool(one.notices) == bool(text)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"about": 3, "prompt": null}'])
def test_a_damaged_task_file_ends_no_report(tmp_path, text):
    one = Run(tmp_path, {}, [], 0, None)
    assert read_task(one) == {}
    (tmp_path / "task.json").write_text(text)
    assert read_task(one) == ({"about": "3"} if "about" in text else {})
    assert bool(one.notices) == ("about" not in text)
