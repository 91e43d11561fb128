"""Notices: when a run should be told that a technique cannot act."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from minivapo.options.embedded import LENGTHS, fitted
from minivapo.show.live import Live
from minivapo.show.notices import about_config, about_run, prompts_per_mini_batch
from minivapo.vapo import PRESETS


@pytest.mark.parametrize(("batch", "group", "mini"), [(256, 8, 16), (64, 8, 8), (16, 16, 4), (12, 1, 5), (8, 4, 8)])
def test_prompts_per_mini_batch_is_the_mean_of_shuffles(batch, group, mini):
    rng = np.random.default_rng(0)
    drawn = [len(set(rng.permutation(batch)[:mini] // group)) for _ in range(4000)]
    error = 5 * np.std(drawn) / np.sqrt(len(drawn))
    assert prompts_per_mini_batch(batch, group, mini) == pytest.approx(np.mean(drawn), abs=error + 1e-9)


def test_the_papers_mini_batches_and_the_default_are_fine():
    assert prompts_per_mini_batch(8192, 16, 512) > 32
    assert about_config(dataclasses.asdict(PRESETS["vapo"])) == []


def test_few_prompts_and_a_median_lambda_of_zero_are_said_once():
    config = dataclasses.replace(PRESETS["vapo"], batch_size=32, mini_batch=8)
    few = about_config(dataclasses.asdict(config))
    assert "has 3.6 prompts" in few[0] or "prompts on average" in few[0]
    line = {"step": 1, "advantage/lam_zero": 0.5}
    said = about_run(dataclasses.asdict(config), [{"step": 0}, line, line])
    assert len(said) == 2
    assert "median λ" in said[1]
    out = io.StringIO()
    with Live(config, console=Console(file=out), plain=True) as live:
        live.update(line)
        live.update(line | {"step": 2})
    assert out.getvalue().count("note: ") == 2


@pytest.mark.parametrize("task", LENGTHS)
def test_embedded_defaults_keep_the_papers_ratio(task):
    """Adaptive horizon over fixed horizon: 250 over 20 tokens in the paper; of this task's mean length here."""
    length = {"locks": 42, "chain": 40, "proof": 100}[task]
    config = fitted(PRESETS["vapo"], task)
    adaptive, fixed = config.alpha * length, 1 / (1 - config.lam)
    assert adaptive / fixed == pytest.approx(12.5, rel=0.05)
    assert adaptive >= 20
