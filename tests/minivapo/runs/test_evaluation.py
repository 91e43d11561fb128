"""minivapo eval: statistics, resumption, and what it refuses."""

import importlib.util
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivapo.cli import main
from minivapo.interfaces import UserError
from minivapo.local import LocalSampler
from minivapo.runs import evaluation
from minivapo.runs.evaluation import finished, pass_at_k, summarise


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(case):
    n, c, k = case
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_golden_and_impossible():
    assert pass_at_k(32, 0, 32) == 0 and pass_at_k(32, 1, 32) == 1
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs hold the right one
    for n, c, k in ((4, 5, 1), (4, 1, 5), (4, 1, 0)):
        with pytest.raises(ValueError, match="pass_at_k"):
            pass_at_k(n, c, k)


def some_settings(**changes):
    base = {
        "model": "m", "weights": "0", "task": "chain", "problems": 2, "problems_hash": "0", "samples": 4,
        "temperature": 1.0, "top_p": 0.7, "max_new_tokens": 8, "max_prompt_tokens": 9, "stop": (), "seed": 0,
        "sampler": "transformers", "sample_batch": 4, "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    return evaluation.Settings(**(base | changes))


def record(verdicts, lengths, truncated=0):
    return {
        "id": "p", "correct": verdicts.count(True), "samples": len(verdicts), "errors": verdicts.count(None),
        "truncated": truncated, "lengths": lengths, "verdicts": verdicts,
    }  # fmt: skip


def test_summary_by_hand():
    rows = [record([True, True, False, None], [1, 2, 3, 4], 1), record([False] * 4, [5, 5, 5, 5])]
    result = summarise(some_settings(), rows)
    assert result["accuracy"] == 0.25 and result["verifier_errors"] == 1 / 8
    assert result["accuracy_if_errors_were_right"] == 0.375  # a failed verifier is never silently a 0
    assert result["pass_at"] == pytest.approx({"1": 0.25, "2": (1 - 1 / 6) / 2, "4": 0.5})
    assert result["truncated"] == 1 / 8 and result["length"]["mean"] == 30 / 8
    assert result["length"]["mean_correct"] == 1.5 and result["length"]["max"] == 5


@settings(max_examples=20)
@given(st.sampled_from(["seed", "samples", "max_new_tokens", "sample_batch"]), st.integers(10, 99))
def test_every_setting_changes_the_key(name, value):
    assert some_settings(**{name: value}).key != some_settings().key == some_settings().key


def evaluate(model, out, *words):
    return main(["eval", str(model), "--samples", "4", "--problems", "6", "--sample-batch", "8", "--device", "cpu",
                 "--max-new-tokens", "24", "--out", str(out), *words])  # fmt: skip


def numbers(path):
    result = json.loads(path.read_text())
    return {k: v for k, v in result.items() if k not in ("date", "seconds")}


def test_a_stopped_evaluation_goes_on_with_the_same_numbers(tiny_model, tmp_path, capsys, monkeypatch):
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    assert evaluate(tiny_model, whole) == 0
    text = capsys.readouterr().out
    assert "pass@4" in text and "95 % interval" in text and str(whole) in text
    generate, calls = LocalSampler.generate, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *arguments)

    monkeypatch.setattr(LocalSampler, "generate", interrupted)
    assert evaluate(tiny_model, stopped) == 130
    assert "go on with the same command" in capsys.readouterr().err
    partial = stopped.with_suffix(".jsonl")
    assert len(partial.read_text().splitlines()) == 1 + 2  # settings, and the two problems of one part
    with partial.open("a") as file:
        file.write('{"id": "cut in the mid')  # as a kill leaves it
    assert evaluate(tiny_model, stopped) == 0
    assert len(calls) == 2 + 2  # the first part was not sampled again
    assert not partial.exists()
    assert numbers(stopped) == numbers(whole)

    capsys.readouterr()
    monkeypatch.setattr(LocalSampler, "generate", None)  # nothing is sampled where the result is there
    assert evaluate(tiny_model, whole) == 0
    assert "pass@4" in capsys.readouterr().out


def test_other_settings_are_refused_and_nothing_is_lost(tiny_model, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert evaluate(tiny_model, out) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert evaluate(tiny_model, out, "--temperature", "0.5") == 1
    assert "temperature 1.0 there, 0.5 here" in capsys.readouterr().err
    assert out.read_bytes() == before
    partial = tmp_path / "other.jsonl"
    partial.write_text(json.dumps({"settings": {}}) + "\n")
    assert evaluate(tiny_model, tmp_path / "other.json") == 1
    assert "other settings" in capsys.readouterr().err and partial.exists()
    (tmp_path / "notes.json").write_text("[]")
    with pytest.raises(UserError, match="not a result"):
        finished(tmp_path / "notes.json", some_settings())


def test_what_decides_the_numbers_is_recorded(tiny_model, tmp_path):
    assert evaluate(tiny_model, tmp_path / "r.json") == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["versions"]["torch"] and "commit" in result
    assert len(result["settings"]["weights"]) == 16 and len(result["settings"]["problems_hash"]) == 16
    assert result["accuracy"] == sum(p["correct"] for p in result["problems"]) / 24
    assert result["tokens"] == sum(sum(p["lengths"]) for p in result["problems"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--samples", "0"], "--samples"),
        (["--temperature", "0"], "--temperature"),
        (["--top-p", "1.5"], "--top-p"),
        (["--max-new-tokens", "9999"], "context"),
        (["--task", "chess"], "there is no task"),
    ],
)
def test_bad_flags(words, text, tiny_model, tmp_path, capsys):
    assert evaluate(tiny_model, tmp_path / "r.json", *words) == 1
    assert text in capsys.readouterr().err


def test_a_missing_model_and_a_missing_vllm(tiny_model, tmp_path, capsys, monkeypatch):
    assert evaluate(tmp_path / "nowhere", tmp_path / "r.json") == 1
    assert "no folder" in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))
    assert evaluate(tiny_model, tmp_path / "r.json", "--sampler", "vllm") == 1
    assert "needs vLLM" in capsys.readouterr().err


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_vllm_samples_from_the_weights_of_a_run(tmp_path):
    worker = Path(__file__).parents[2] / "support" / "vllm_eval_worker.py"
    subprocess.run([sys.executable, str(worker), str(tmp_path)], check=True, timeout=850, capture_output=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["trained"] == found["code"] == 0
    assert found["gap"] < 1e-4 and found["gap_to_base"] > 1e-2
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["settings"]["sampler"] == "vllm" and [len(p["lengths"]) for p in result["problems"]] == [4, 4, 4]
