"""Whatever a terminal's encoding lacks, a command says what it has to say."""

import io
import sys

import pytest

from minivapo import responses
from minivapo.cli import main

SIZE = "--preset grpo --batch-size 4 --mini-batch 4 --group-size 4 --max-new-tokens 8 --eval-problems 2 --steps 1"


@pytest.mark.once
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_commands_print_what_the_terminal_can_show(tiny_model, tmp_path, monkeypatch, encoding):
    """A run folder and responses with characters of several scripts; nothing is raised, before or after the work."""
    run = tmp_path / "né-模型"
    monkeypatch.setattr(responses, "response_text", lambda *_: "ü → 模型 ✓ … \ud800")
    commands = (
        f"train {SIZE} --device cpu --model {tiny_model} --run {run}",
        f"sample {run} --count 2",
        f"sample {run} --count 2 --show-prompt",
        f"eval {run} --samples 2 --problems 2 --device cpu",
        f"report {run}",
    )
    shown = {}
    for words in commands:
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
        monkeypatch.setattr(sys, "stdout", out)
        assert main(words.split()) == 0, words
        shown[words.split()[0]] = out.buffer.getvalue().decode(encoding)
    assert run.joinpath("metrics.jsonl").exists() and len(list(run.glob("eval-*.json"))) == 1
    letter, sign, arrow = {
        "ascii": ("\\xfc", "\\u2713", "->"), "latin-1": ("ü", "\\u2713", "->"), "utf-8": ("ü", "✓", "→"),
    }[encoding]  # fmt: skip
    assert f"{letter} {arrow} " in shown["sample"] and f"{sign} " in shown["sample"]
    assert "\\ud800" in shown["sample"]
    assert "accuracy" in shown["eval"]
