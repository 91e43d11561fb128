"""MiniVAPO from a program or a notebook: a run in one call, and objects that say what they are."""

import dataclasses
import json
from collections.abc import Mapping

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from minivapo.commands.train import train_run
from minivapo.errors import UserError
from minivapo.interfaces import Problem
from minivapo.local import LocalEngine
from minivapo.show.text import line
from minivapo.tasks.locks import Locks
from minivapo.vapo import train


def test_a_run_in_one_call_is_the_commands(tiny_model, tmp_path):
    folder = train_run(
        preset="grpo", task="chain", model=tiny_model, run=tmp_path / "run", steps=1, batch_size=8, mini_batch=8,
        group_size=4, max_new_tokens=8, eval_problems=2, token_level_loss=False, stop=["twist", "="], device="cpu",
    )  # fmt: skip
    assert folder == tmp_path / "run" and (folder / "report.html").exists()
    found = json.loads((folder / "config.json").read_text())
    assert found["config"]["token_level_loss"] is False and found["config"]["batch_size"] == 8
    assert found["engine_options"]["stop"] == ["twist", "="]
    with pytest.raises(UserError, match="already holds a run"):
        train_run(preset="grpo", task="chain", model=tiny_model, run=folder, steps=1)


def test_in_jupyter_a_run_shows_its_lines(tiny_model, tmp_path):
    code = (
        "from minivapo.commands.train import train_run\n"
        f"train_run(preset='grpo', task='chain', model={str(tiny_model)!r}, run='run', steps=1, batch_size=8, "
        "mini_batch=8, group_size=4, max_new_tokens=8, eval_problems=2, device='cpu')"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(out.get("text", "") or out["data"]["text/plain"] for out in notebook.cells[0].outputs)
    assert "base policy | held-out accuracy" in shown and "step 1/1 | accuracy" in shown
    assert "PosixPath('run')" in shown and (tmp_path / "run/report.html").exists()


def test_what_train_yields_is_worth_printing(tiny_model, chain, small):
    config = small("vapo", steps=1)
    engine = LocalEngine(tiny_model, config)
    lines = [line(metrics) for metrics in train(config, chain, engine)]
    assert lines[0].startswith("step 0 | held-out accuracy ")
    assert lines[1].startswith("step 0 | pretraining 1 | loss ")
    assert lines[-1].startswith("step 1 | accuracy ") and "held-out accuracy" in lines[-1]
    assert repr(engine).startswith("LocalEngine(actor=LlamaForCausalLM(") and repr(engine).endswith(", step=1)")
    assert "updates, cpu)" in repr(engine.critic)
    shown = repr(engine.rollout)
    assert shown.startswith("Rollout(16 responses, ") and shown.endswith(" % right)")
    assert repr(engine.rollout.rows([])) == "Rollout(no responses)"
    assert repr(Locks()) == f"Locks('locks', {len(Locks().words)} words)"


class Multiples(Locks):
    """The verdict rests on the metadata alone."""

    def draw(self, key, held_out):
        return dataclasses.replace(super().draw(key, held_out), metadata={"right": "ok"})

    def judge(self, problems, responses):
        pairs = zip(problems, responses, strict=True)
        return [problem.metadata["right"] in response.split() for problem, response in pairs]


def test_a_problem_carries_what_its_judge_needs(small):
    from minivapo.tasks import BASES

    config = small("grpo", steps=1, max_new_tokens=64)
    engine = LocalEngine(BASES / "locks", config)
    last = list(train(config, Multiples(), engine))[-1]
    assert last["reward/accuracy"] > 0.8
    assert all(problem.metadata == {"right": "ok"} for problem in engine.rollout.problems)
    plain = Problem("a", "b", "c")
    assert isinstance(plain.metadata, Mapping) and plain == Problem("a", "b", "c", {"x": 1})
    assert hash(plain) == hash(Problem("a", "b", "c", {"x": torch.zeros(2)}))
