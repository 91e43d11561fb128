"""How often a run evaluates itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivapo.local import LocalEngine
from minivapo.measure import evaluation_interval
from minivapo.vapo import train


@given(st.integers(1, 2000), st.floats(0.001, 100))
def test_evaluations_between_cost_a_tenth_at_most(steps, rollouts):
    every = evaluation_interval(0, steps, rollouts)
    between = (steps - 1) // every  # those before the end
    assert between <= 3
    assert between * rollouts <= 0.1 * steps * (1 + 1e-12)
    assert between == 3 or steps < 40 * rollouts or steps < 10  # as many as there is room for


@given(st.integers(1, 2000), st.integers(1, 50))
def test_a_given_interval_is_taken(steps, every):
    assert evaluation_interval(every, steps, 3.0) == every


@pytest.mark.once
@pytest.mark.parametrize("every", [0, 1])
def test_evaluations_change_nothing_that_a_run_learns(tiny_model, chain, small, every):
    def accuracy(every):
        config = small("grpo", steps=4, eval_problems=1, eval_every=every)
        lines = list(train(config, chain, LocalEngine(tiny_model, config)))
        return [m["actor/loss"] for m in lines[1:]], [m["step"] for m in lines if "eval/accuracy" in m]

    losses, evaluated = accuracy(every)
    assert losses == accuracy(4)[0]
    assert evaluated == [0, 1, 2, 3, 4]  # room for three between, or after each step
