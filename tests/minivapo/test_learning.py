"""That it learns: the default run from the embedded base, with a threshold. Takes minutes."""

import dataclasses

import pytest

from minivapo.commands.train import read
from minivapo.local import LocalEngine
from minivapo.tasks import BASES, load_task, make_task
from minivapo.tasks.base import make_base
from minivapo.vapo import PRESETS, evaluate, train


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_default_run_learns():
    """At least 40 points, as the README promises, with another seed than its own; and the critic goes on seeing."""
    args = read(["--seed", "3"])
    task, model = load_task(args.task, {}, args.model, args.config.max_prompt_tokens)
    engine = LocalEngine(model, args.config, critic=args.critic, stop=task.stop)
    lines = list(train(args.config, task, engine))
    accuracy = [line["eval/accuracy"] for line in lines if "eval/accuracy" in line]
    assert 0.1 <= accuracy[0] <= 0.45, "the base must be right in 10 to 40 % of cases"
    assert accuracy[-1] - accuracy[0] >= 0.40
    explained = [line["value/explained_variance"] for line in lines if "value/explained_variance" in line]
    assert min(explained[:8]) > 0.3, "the critic in the package must explain a good part of the returns at once"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_remade_base_is_as_good_as_the_one_in_the_package(tmp_path):
    """Made from nothing, in an eighth of the steps, it is right as often: the weights in the package hide nothing."""
    task = make_task("locks")
    config = dataclasses.replace(PRESETS["grpo"], eval_problems=1024)

    def accuracy(folder):
        engine = LocalEngine(folder, config)
        engine.sampler.sync(engine.actor)
        return evaluate(config, task, engine)["eval/accuracy"]

    remade = accuracy(make_base(task, tmp_path / "base", steps=task.recipe.steps // 8))
    assert abs(remade - accuracy(BASES / "locks")) < 0.06  # bases of other seeds differ by less
