"""minivapo eval: statistics, resumption, and what it refuses."""

import importlib.util
import json
import shutil
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import results

from minivapo.cli import main
from minivapo.commands.arguments import resolve_source
from minivapo.interfaces import UserError
from minivapo.loading import load_shape
from minivapo.local import LocalEngine, LocalSampler
from minivapo.responses import Draw, respond
from minivapo.runs import evaluation
from minivapo.runs.checkpoint import save_checkpoint
from minivapo.runs.evaluation import Settings, finished, pass_at_k, scratch_file, show, summarise
from minivapo.runs.folder import write_config
from minivapo.runs.origin import fingerprint
from minivapo.vapo import evaluate as evaluate_training


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
        "model": "m", "weights": "0", "files": "0", "stop_ids": (1,),
        "task": "chain", "problems": 2, "problems_hash": "0", "samples": 4,
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


@pytest.mark.once
def test_a_stopped_evaluation_goes_on_with_the_same_numbers(tiny_model, tmp_path, capsys, monkeypatch):
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    assert evaluate(tiny_model, whole) == 0
    text = capsys.readouterr().out
    assert "pass@4" in text and "95 % interval" in text and str(whole) in text
    generate, calls = LocalSampler.generate, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:  # the first is the probe
            raise KeyboardInterrupt
        return generate(self, *arguments)

    monkeypatch.setattr(LocalSampler, "generate", interrupted)
    assert evaluate(tiny_model, stopped) == 130
    assert "go on with the same command" in capsys.readouterr().err
    (partial,) = tmp_path.glob("stopped.json.*.partial")
    assert len(partial.read_text().splitlines()) == 1 + 2  # settings, and the two problems of one part
    with partial.open("a") as file:
        file.write('{"id": "cut in the mid')  # as a kill leaves it
    assert evaluate(tiny_model, stopped) == 0
    assert len(calls) == 3 + 3  # each with a probe; the first part was not sampled again
    assert not partial.exists()
    assert numbers(stopped) == numbers(whole)

    capsys.readouterr()
    monkeypatch.setattr(LocalSampler, "generate", None)  # nothing is sampled where the result is there
    assert evaluate(tiny_model, whole) == 0
    assert "pass@4" in capsys.readouterr().out


@pytest.mark.once
def test_other_settings_are_refused_and_nothing_is_lost(tiny_model, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert evaluate(tiny_model, out) == 0
    before = out.read_bytes()
    capsys.readouterr()
    assert evaluate(tiny_model, out, "--temperature", "0.5") == 1
    assert "temperature 1.0 there, 0.5 here" in capsys.readouterr().err
    assert out.read_bytes() == before
    scratch = scratch_file(tmp_path / "other.json", Settings(**json.loads(before)["settings"]))
    for text, message in ((json.dumps({"settings": {}}) + "\n", "other settings"), ("my notes", "something else")):
        scratch.write_text(text)
        assert evaluate(tiny_model, tmp_path / "other.json") == 1
        assert message in capsys.readouterr().err and scratch.read_text() == text
    scratch.write_text('{"settings": {"mod')  # as a kill leaves it
    assert evaluate(tiny_model, tmp_path / "other.json") == 0
    assert numbers(tmp_path / "other.json") == numbers(out)
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
        (["--temperature", "-1"], "--temperature"),
        (["--stop", ""], "--stop"),
        (["--top-p", "1.5"], "--top-p"),
        (["--max-new-tokens", "9999"], "context"),
        (["--task", "chess"], "there is no task"),
        (["--split", "all"], "locks is none"),
        (["--split", "some"], "--split is some"),
    ],
)
def test_bad_flags(words, text, tiny_model, tmp_path, capsys):
    assert evaluate(tiny_model, tmp_path / "r.json", *words) in (1, 2)  # 2 where the flags alone are wrong
    assert text in capsys.readouterr().err


def test_a_missing_model_and_a_missing_vllm(tiny_model, tmp_path, capsys, monkeypatch):
    assert evaluate(tmp_path / "nowhere", tmp_path / "r.json") == 1
    assert "no folder" in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "vllm" else find(name, *rest))
    assert evaluate(tiny_model, tmp_path / "r.json", "--sampler", "vllm") == 1
    assert "needs vLLM" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["r.jsonl", "notes.json", "r", "r.partial"])
def test_the_result_stays_and_no_file_of_the_user_goes(tiny_model, tmp_path, name):
    for mine in ("notes.jsonl", "r.json.partial", "notes.json.partial"):
        (tmp_path / mine).write_text("my notes")
    assert evaluate(tiny_model, tmp_path / name) == 0
    assert json.loads((tmp_path / name).read_text())["accuracy"] >= 0
    assert {p.name for p in tmp_path.iterdir()} == {"notes.jsonl", "r.json.partial", "notes.json.partial", name}
    assert all((tmp_path / mine).read_text() == "my notes" for mine in ("notes.jsonl", "r.json.partial"))


def copy_of(model, folder):
    shutil.copytree(model, folder)
    return folder


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_every_file_that_decides_the_numbers_is_in_the_key(tiny_model, tmp_path):
    model = copy_of(tiny_model, tmp_path / "model")
    first = fingerprint(str(model))
    assert first == fingerprint(str(copy_of(model, tmp_path / "elsewhere")))
    for name in ("optimizer.safetensors", "optimizer-00001.safetensors", "master.safetensors", "learner.json"):
        (model / name).write_text("of training alone")
    assert fingerprint(str(model)) == first
    found = {first}
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        edit(model / name, changed=True)
        found.add(fingerprint(str(model)))
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        with (model / name).open("ab") as file:
            file.write(b" ")
        found.add(fingerprint(str(model)))
    assert len(found) == 7


def test_after_an_edit_of_the_model_it_is_sampled_anew(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = copy_of(tiny_model, tmp_path / "model")
    words = ["eval", "model", "--samples", "2", "--problems", "4", "--max-new-tokens", "8", "--device", "cpu"]
    assert main(words) == 0
    edit(model / "config.json", rope_theta=3.0, rope_parameters={"rope_type": "default", "rope_theta": 3.0})
    assert main(words) == 0
    edit(model / "generation_config.json", eos_token_id=[1, 5])
    assert main(words) == 0
    results = [
        json.loads(path.read_text()) for path in sorted(Path("evals").iterdir(), key=lambda p: p.stat().st_mtime)
    ]
    assert [5 in result["settings"]["stop_ids"] for result in results] == [False, False, True]
    assert main([*words, "--out", "fresh.json"]) == 0
    assert json.loads(Path("fresh.json").read_text())["problems"] == results[2]["problems"]


def test_a_run_keeps_its_template_and_prompts_fill_the_context(tiny_model, small, tmp_path):
    config, run = small("grpo", max_prompt_tokens=40), tmp_path / "run"
    options = {"template": "chat"}
    write_config(run, config, {"task": "jsonl:./f", "task_options": options, "model": str(tiny_model), "critic": None})
    save_checkpoint(LocalEngine(tiny_model, config), run)
    (run / "metrics.jsonl").write_text("")
    context = load_shape(tiny_model).max_position_embeddings
    for task in (None, "jsonl:./f", "jsonl:f", "aime2024"):
        source = resolve_source(str(run), task, {})
        assert source.task_options == options
        assert source.config.max_prompt_tokens == context - config.max_new_tokens
    assert resolve_source(str(run), "jsonl:f", {"template": "base"}).task_options == {"template": "base"}
    assert resolve_source(str(run), None, {}, context - 50).config.max_prompt_tokens == 50
    assert resolve_source(str(run), None, {}, context - 30).config.max_prompt_tokens == 40  # refused later, by name


def test_what_is_left_out_stands_in_the_headline(capsys):
    rows = [record([True, False], [1, 2])]
    show(summarise(some_settings(samples=2, problems=1), rows, left_out=17))
    assert "2 samples on 1 problems (17 LEFT OUT: prompts of more than 9 tokens)" in capsys.readouterr().out
    show(summarise(some_settings(samples=1, problems=1, temperature=0.0), [record([True], [1])]))
    text = capsys.readouterr().out
    assert "LEFT OUT" not in text and "greedy" in text and "top-p" not in text


@pytest.mark.once
def test_a_whole_file_is_evaluated_and_what_is_left_out_named(tiny_model, tmp_path, capsys):
    pytest.importorskip("math_verify")
    path, context = tmp_path / "f.jsonl", load_shape(tiny_model).max_position_embeddings
    rows = [{"prompt": f"{i} ?", "answer": str(i)} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "7 " * context, "answer": "7"}]))
    words = ["eval", str(tiny_model), "--task", f"jsonl:{path}", "--samples", "1", "--max-new-tokens", "4"]
    counts = []
    for split in ("test", "all"):
        assert main([*words, "--split", split, "--out", str(tmp_path / f"{split}.json")]) == 0
        counts.append(json.loads((tmp_path / f"{split}.json").read_text())["settings"]["problems"])
    assert counts[0] < counts[1] == 9
    assert f"9 problems (1 LEFT OUT: prompts of more than {context - 4} tokens)" in capsys.readouterr().out


def test_the_sampling_batch_is_a_bound(tiny_model, tmp_path, monkeypatch):
    whole, rows = LocalSampler.sample_batch, []

    def counted(self, prompts, n, *rest):
        rows.append(len(prompts) * n)
        return whole(self, prompts, n, *rest)

    monkeypatch.setattr(LocalSampler, "sample_batch", counted)
    assert evaluate(tiny_model, tmp_path / "r.json", "--samples", "7", "--sample-batch", "3", "--problems", "2") == 0
    assert rows[-6:] == [3, 3, 1] * 2 and max(rows) <= 3  # the first are those of the probe
    assert len({tuple(p["lengths"]) for p in json.loads((tmp_path / "r.json").read_text())["problems"]}) == 2


def test_temperature_0_is_greedy(tiny_model, chain, small, tmp_path, capsys):
    """Every token is the likeliest one after those before it; by a plain forward pass over the whole row."""
    engine = LocalEngine(tiny_model, small("grpo"))
    engine.sampler.sync(engine.actor)
    draw = Draw(3, 0, 0, 512, 10.0, temperature=0.0)
    responses = respond(chain, chain.test_problems(5), engine.tokenizer, engine.sampler, draw)
    assert len(responses) == 15
    for i, r in enumerate(responses):
        row = torch.tensor([[*r.prompt, *r.sample.tokens]])
        with torch.no_grad():
            best = engine.actor.model(input_ids=row).logits[0, len(r.prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == r.sample.tokens == responses[i // 3 * 3].sample.tokens
    for name, seed in (("a.json", "0"), ("b.json", "1")):
        assert evaluate(tiny_model, tmp_path / name, "--temperature", "0", "--seed", seed) == 0
    a, b = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert a["problems"] == b["problems"] and a["settings"]["samples"] == 1
    capsys.readouterr()
    shown = []
    for seed in ("0", "1"):
        assert main(["sample", str(tiny_model), "--temperature", "0", "--count", "3", "--seed", seed]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    assert evaluate_training(small("grpo", eval_temperature=0.0), chain, engine)["eval/accuracy"] >= 0


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_vllm_samples_from_the_weights_of_a_run(tmp_path):
    found = results(1, "vllm_eval_worker.py", tmp_path / "found.json")
    assert found["trained"] == found["code"] == 0
    assert found["gap"] < 1e-4 and found["gap_to_base"] > 1e-2
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["settings"]["sampler"] == "vllm" and [len(p["lengths"]) for p in result["problems"]] == [4, 4, 4]
    assert found["at_once"] == 3
