"""The first screen of a run: it speaks of this configuration, and shows any prompt on a short line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivapo.interfaces import Problem
from minivapo.local import LocalEngine
from minivapo.show.introduction import introduction, phases, shorten
from minivapo.vapo import PRESETS, train

pytestmark = pytest.mark.once


@pytest.mark.parametrize("preset", PRESETS)
def test_every_announced_phase_happens_and_no_other(preset, tiny_model, chain, small):
    config = small(preset)
    lines = list(train(config, chain, LocalEngine(tiny_model, config)))
    happened = [
        "eval/accuracy" in lines[0],
        any("pretrain/reward_model_loss" in line for line in lines),
        any("pretrain/value_loss" in line for line in lines),
        any("actor/loss" in line for line in lines),
    ]
    said = " ".join(phases(config))
    words = ("as it is", "reward model", "critic while", "train the policy")
    assert [word in said for word in words] == happened
    assert f"train the policy: {config.steps} step" in said


def test_the_first_screen_shows_prompt_answer_folder_and_seed():
    text = introduction(PRESETS["vapo"], "chain", "vapo", Problem("4 A inc ?", "5", "x"), Path("runs/chain-vapo-0"))
    for part in ("vapo on chain, seed 0", "runs/chain-vapo-0", "4 A inc ?", "it should find:  5", "--resume"):
        assert part in text
    assert "24 steps, each with 32 prompts × 8 responses and 16 gradient steps" in text


@given(st.text(max_size=2000), st.integers(10, 400))
def test_a_prompt_of_any_text_is_one_short_printable_line(text, width):
    short = shorten(text, width)
    assert len(short) <= width
    assert short.isprintable()
    if len(text.strip()) > width:
        assert "…" in short
