"""That it learns: the default run from the embedded base, with a threshold. Takes minutes."""

import dataclasses

import pytest

from minivapo.local import LocalEngine
from minivapo.tasks import BASES, make_task
from minivapo.tasks.base import make_base
from minivapo.vapo import PRESETS, evaluate, train


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_vapo_raises_held_out_accuracy_of_the_embedded_base():
    """At least 30 points in the default run, whatever the seed, and a critic that explains some of the returns."""
    config = dataclasses.replace(PRESETS["vapo"], seed=3)
    lines = list(train(config, make_task("chain"), LocalEngine(BASES / "chain", config)))
    accuracy = [line["eval/accuracy"] for line in lines if "eval/accuracy" in line]
    assert 0.1 <= accuracy[0] <= 0.45, "the base must be right in 10 to 40 % of cases"
    assert accuracy[-1] - accuracy[0] >= 0.30
    pretraining = [line["value/explained_variance"] for line in lines if "pretrain/value_loss" in line]
    assert max(pretraining) > 0.1, "value-pretraining must explain part of the variance of the returns"
    assert lines[-1]["value/explained_variance"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_remade_base_is_as_good_as_the_one_in_the_package(tmp_path):
    """Made from nothing by the defaults, it is right as often: the weights in the package hide nothing."""
    task = make_task("chain")
    config = dataclasses.replace(PRESETS["grpo"], eval_problems=1024)

    def accuracy(folder):
        engine = LocalEngine(folder, config)
        engine.sampler.sync(engine.actor)
        return evaluate(config, task, engine)["eval/accuracy"]

    remade = accuracy(make_base(task, tmp_path / "base"))
    assert abs(remade - accuracy(BASES / "chain")) < 0.06  # bases of other seeds differ by less
