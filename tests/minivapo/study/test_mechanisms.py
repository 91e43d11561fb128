"""The measurements agree with definitions that can be checked by hand, and are fair where they are random."""

import math

import pytest
import torch

from minivapo.interfaces import Problem, Rollout, derive_seed
from minivapo.local import LocalEngine
from minivapo.study import mechanisms as m
from minivapo.vapo import collect, gae, length_adaptive_lambda

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def engine(tiny_model, chain, small):
    engine = LocalEngine(tiny_model, small("vapo", group_size=1), stop=chain.stop)
    engine.sampler.sync(engine.actor)
    return engine


@pytest.fixture(scope="module")
def rollout(engine, chain):
    return collect(engine.actor.config, chain, engine, "test")


def make(lengths: list[int], correct: list[bool], advantages: float = 1.0) -> Rollout:
    """Rows without prompts."""
    n = torch.tensor(lengths)
    mask = torch.arange(int(n.max())) < n[:, None]
    rewards = torch.zeros(mask.shape)
    rewards[torch.arange(len(n)), n - 1] = torch.tensor(correct).float()
    return Rollout(
        tokens=torch.zeros(mask.shape, dtype=torch.long), mask=mask, sampled_logprobs=torch.zeros(mask.shape),
        rewards=rewards, lengths=n, totals=n, terminated=torch.ones(len(n), dtype=torch.bool),
        correct=torch.tensor(correct), judged=torch.ones(len(n), dtype=torch.bool), group=torch.arange(len(n)),
        number=torch.arange(len(n)),
        advantages=advantages * mask, old_logprobs=torch.zeros(mask.shape),
    )  # fmt: skip


def test_continuations_are_whole_responses_of_the_policy(engine, chain, rollout):
    row = int(rollout.lengths.argmax())
    prefix = m.response_tokens(rollout, row)[:3]
    problem = rollout.problems[row]
    found = m.continue_prefixes(engine, chain, [problem], [prefix], n=6, seed=1)
    assert len(found) == 6 and all(m.response_tokens(found, i)[:3] == prefix for i in range(6))
    assert int(found.lengths.max()) <= engine.sampler.max_new_tokens
    texts = [engine.tokenizer.decode(m.response_tokens(found, i), skip_special_tokens=True) for i in range(6)]
    assert found.correct.tolist() == chain.judge([problem] * 6, texts)
    assert torch.equal(found.rewards.sum(1), found.correct.float())
    assert torch.equal(found.rewards.nonzero()[:, 1], found.last[found.correct])


def test_a_continuation_ends_at_the_limit_of_the_response(engine, chain, rollout):
    limit = engine.sampler.max_new_tokens
    label = engine.tokenizer.convert_tokens_to_ids("A")
    found = m.continue_prefixes(engine, chain, [rollout.problems[0]], [[label] * (limit - 1)], n=4, seed=0)
    assert found.lengths.tolist() == [limit] * 4


def test_true_values_are_certain_where_all_is_decided(engine, chain, rollout, monkeypatch):
    problems = [rollout.problems[0], rollout.problems[1]]
    judged = {problems[0].prompt: True, problems[1].prompt: False}
    monkeypatch.setattr(chain, "judge", lambda ps, rs: [judged[p.prompt] for p in ps])
    responses = [m.response_tokens(rollout, 0), m.response_tokens(rollout, 1)]
    values, errors = m.true_values(engine, chain, problems, responses, [0, 0], n=8, seed=0)
    assert values.tolist() == [1, 0]
    # (8 + 1)/(8 + 2) = 0.9: √(0.9 · 0.1 / 8)
    assert errors.tolist() == pytest.approx([math.sqrt(0.09 / 8)] * 2)


def test_true_values_repeat_with_the_seed(engine, chain, rollout):
    arguments = [rollout.problems[0]], [m.response_tokens(rollout, 0)], [1]
    one = m.true_values(engine, chain, *arguments, n=8, seed=3)[0]
    assert torch.equal(one, m.true_values(engine, chain, *arguments, n=8, seed=3)[0])


def test_positions_at_the_same_share_of_every_response():
    rows, positions, bins = m.positions_at(torch.tensor([1, 5]), [0, 0.5, 1])
    assert rows == [0, 0, 0, 1, 1, 1] and positions == [0, 0, 0, 0, 2, 4] and bins == [0, 1, 2, 0, 1, 2]


def test_value_bias_by_bin():
    found = m.value_bias(torch.tensor([0.1, 0.3, 0.9, 0.7]), torch.tensor([0.2, 0.4, 0.5, 0.5]), [0, 0, 1, 1])
    assert found[0]["bias"] == pytest.approx(-0.1) and found[0]["bias_error"] == pytest.approx(0, abs=1e-6)
    assert found[0]["correlation"] == pytest.approx(1)
    assert found[1]["bias"] == pytest.approx(0.3)
    assert found[1]["bias_error"] == pytest.approx(0.1)  # gaps 0.4 and 0.2: deviation 0.1414, over √2
    assert found[1]["correlation"] == 0  # the truth does not vary


@pytest.mark.parametrize("target", ["score", "returns", "bootstrap"])
def test_fit_critic_learns_and_leaves_the_policy_alone(target, tiny_model, chain, small):
    config = small("vapo", group_size=1, value_pretrain_lr=1e-2)
    engine = LocalEngine(tiny_model, config, stop=chain.stop)
    engine.sampler.sync(engine.actor)
    before = [p.detach().clone() for p in engine.actor.model.parameters()]
    rollouts = list(m.fit_critic(config, chain, engine, 2, target))
    assert len(rollouts) == 2 and engine.critic.version == 2 * config.batch_size // config.mini_batch
    assert float(rollouts[0].values.abs().max()) == 0 < float(rollouts[1].values.abs().max())
    assert all(torch.equal(a, b) for a, b in zip(before, engine.actor.model.parameters(), strict=True))
    lam = 0.95 if target == "bootstrap" else 1.0
    for r in rollouts:
        expected = gae(r.rewards, r.values, r.mask, 1.0, lam) + r.values * r.mask
        if target != "score":
            assert torch.allclose(r.returns, expected, atol=1e-6)


def test_fit_critic_refuses_an_unknown_target(engine, chain):
    with pytest.raises(ValueError, match="score, returns or bootstrap"):
        next(m.fit_critic(engine.actor.config, chain, engine, 1, "td"))


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_reward_weight_is_what_gae_gives(lam, gamma):
    steps = torch.arange(50).flip(0)
    assert torch.allclose(m.measured_reward_weight(50, lam, gamma), m.reward_weight(steps, lam, gamma), atol=1e-12)


def test_reward_weight_of_the_paper():
    assert float(m.reward_weight(torch.tensor([100]), 0.95)) == pytest.approx(0.0059, abs=1e-4)  # §3.1: ≈ 0.006


def synthetic(n: int, tokens: int, seed: int = 0) -> tuple[m.AdvantageProbe, torch.Tensor]:
    """A probe of 3-token responses at t = 1, and exact values: V(before) = 0.5, V(after) = 0.8 for the probed action.

    The policy takes that action half of the time; the other one leads to 0.2.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = n * tokens
    good = torch.cat([torch.rand(rows, generator=generator) < 0.5, torch.ones(rows, dtype=torch.bool)])
    after = torch.where(good, 0.8, 0.2)
    rollout = make([3] * (2 * rows), (torch.rand(2 * rows, generator=generator) < after).tolist())
    values = torch.stack([torch.full((2 * rows,), 0.5), torch.full((2 * rows,), 0.5), after], 1)
    at = torch.ones(tokens, dtype=torch.long)
    return m.AdvantageProbe(3 * at, at, n, rollout), values


def test_advantage_errors_with_exact_values():
    """λ = 0 gives V(after) − V(before) = 0.3 exactly; λ = 1 gives R − 0.5, of variance 0.8 · 0.2."""
    probe, values = synthetic(n=8, tokens=4000)
    zero, one = m.advantage_errors(probe, values, 0.0), m.advantage_errors(probe, values, 1.0)
    assert float(zero["variance"].max()) == pytest.approx(0, abs=1e-12)
    assert float(one["variance"].mean()) == pytest.approx(0.16, abs=0.01)
    for errors in (zero, one):  # the noise of the truth is in none of these
        assert float(errors["bias_squared"].mean()) == pytest.approx(0, abs=0.005)
        assert float(errors["baseline_squared"].mean()) == pytest.approx(0, abs=0.005)
        assert float(errors["truth_square"].mean()) == pytest.approx(0.09, abs=0.01)
    assert m.cosine(zero) == pytest.approx(1, abs=0.05)
    assert m.cosine(one) == pytest.approx(0.3 / 0.5, abs=0.03)  # E[Â²] = 0.3² + 0.16 = 0.25


def test_a_wrong_baseline_is_no_bias():
    """A critic 0.2 too high before the token: Â is 0.2 too low for every action and any λ."""
    probe, values = synthetic(n=8, tokens=4000, seed=1)
    values[:, 1] += 0.2
    for lam in (0.0, 1.0):
        found = m.advantage_errors(probe, values, lam)
        assert float(found["baseline_squared"].mean()) == pytest.approx(0.04, abs=0.006)
        assert float(found["bias_squared"].mean()) == pytest.approx(0, abs=0.005)


def test_a_blind_critic_is_all_bias_at_lambda_0_and_none_at_1():
    probe, values = synthetic(n=8, tokens=4000, seed=2)
    values[:] = 0.5
    zero, one = m.advantage_errors(probe, values, 0.0), m.advantage_errors(probe, values, 1.0)
    assert float(zero["bias_squared"].mean()) == pytest.approx(0.09, abs=0.01) and m.cosine(zero) == 0
    assert float(one["bias_squared"].abs().max()) == pytest.approx(0, abs=1e-12)
    for errors in (zero, one):
        expected = errors["bias_squared"].mean() + (errors["variance"] + errors["baseline_squared"]).mean() / 10
        assert m.error_of_mean(errors, 10) == pytest.approx(float(expected))


def test_probe_takes_a_lambda_for_each_row():
    probe, values = synthetic(n=4, tokens=5)
    lam = length_adaptive_lambda(probe.rollout.lengths, 1.0)  # 1 − 1/3
    assert torch.allclose(m.probe_estimates(probe, values, lam), m.probe_estimates(probe, values, 1 - 1 / 3))


def test_probe_samples_before_and_after_the_token(engine, chain, rollout):
    row = int(rollout.lengths.argmax())
    probe = m.probe_advantages(engine, chain, rollout, [row, row], [0, 2], n=4, seed=5)
    response = m.response_tokens(rollout, row)
    assert len(probe.rollout) == 16 and probe.outcomes.shape == (2, 2, 4)
    for first, length in ((4, 2), (8, 1), (12, 3)):  # before token 2, after token 0, after token 2
        assert m.response_tokens(probe.rollout, first)[:length] == response[:length]
    assert torch.allclose(probe.truth, probe.outcomes[1].mean(1) - probe.outcomes[0].mean(1))
    estimate = m.probe_estimates(probe, torch.zeros(probe.rollout.tokens.shape), 1.0)
    assert torch.equal(estimate, probe.outcomes)  # no critic and λ = 1: the outcome itself


def test_choices_are_uncertain_tokens_that_matter():
    rollout = make([5], [True])
    rollout.tokens = torch.tensor([[7, 8, 9, 7, 7]])
    logprobs = torch.tensor([[0.5, 0.5, 0.95, 0.2, 0.1]]).log()
    assert m.choices(rollout, logprobs, neutral=[8]) == [[0, 3]]  # 1 is neutral, 2 is certain, 4 is the last


@pytest.mark.parametrize(("positions", "n"), [([99], 4), ([0], 3), ([0], 2), ([-1], 4)])
def test_probe_refuses_what_cannot_be_probed(engine, chain, rollout, positions, n):
    with pytest.raises(ValueError, match="probe_advantages"):
        m.probe_advantages(engine, chain, rollout, [0], positions, n, seed=0)


def test_gradient_share_by_length():
    """Lengths 2 and 8: half each by sample, 2/10 and 8/10 by token."""
    rollout = make([2, 8], [True, False])
    sample, token = (m.gradient_share(rollout, [5], level) for level in (False, True))
    assert [s["gradient"] for s in sample] == pytest.approx([0.5, 0.5])
    assert [s["gradient"] for s in token] == pytest.approx([0.2, 0.8])
    assert [s["tokens"] for s in sample] == pytest.approx([0.2, 0.8])
    assert [s["token_weight"] for s in sample] == pytest.approx([2.5, 0.625])  # 1/2 and 1/8 over 2/10
    assert [s["token_weight"] for s in token] == pytest.approx([1, 1])


def test_probability_ceiling():
    found = m.probability_ceiling(torch.tensor([0.01, 0.9]), 0.28)
    assert found.tolist() == pytest.approx([0.0128, 1.0])


def test_mixed_share_and_its_estimate():
    assert m.mixed_share(0.02, 16) == pytest.approx(1 - 0.02**16 - 0.98**16)
    # of 4 samples 1 is right: 3 of the 6 pairs are mixed
    assert m.estimated_mixed_share(torch.tensor([1, 0, 4]), 4, 2).tolist() == pytest.approx([0.5, 0, 0])
    draws = torch.distributions.Binomial(16, torch.tensor(0.1)).sample((20000,)).long()
    assert float(m.estimated_mixed_share(draws, 16, 4).mean()) == pytest.approx(m.mixed_share(0.1, 4), abs=0.005)


def test_samples_to_successes():
    assert m.samples_to_successes([False, True, True, False, False, True], 1) == [2, 1, 3]
    assert m.samples_to_successes([False, True, True, False, False, True], 2) == [3]
    assert m.samples_to_successes([False, False], 1) == []


def test_problem_set_deals_every_problem_once_a_cycle(chain):
    problems = chain.train_problems(0, 5, 0)
    task = m.ProblemSet(chain, problems)
    dealt = task.train_problems(0, 10, 3)
    assert sorted(p.id for p in dealt[:5]) == sorted(p.id for p in dealt[5:]) == sorted(p.id for p in problems)
    assert task.train_problems(3, 4, 3) == dealt[3:7]  # a stream, whatever the calls
    assert task.test_problems(2) == problems[:2] and task.name == chain.name
    assert task.judge(problems[:1], [f"= {problems[0].answer}"]) == [True]


def test_problem_set_trains(chain, tiny_model, small):
    task = m.ProblemSet(chain, chain.train_problems(0, 3, 0))
    config = small("vapo", group_size=4, seed=derive_seed("x"))
    engine = LocalEngine(tiny_model, config, stop=task.stop)
    engine.sampler.sync(engine.actor)
    assert len(collect(config, task, engine, "train")) == config.batch_size


def test_tables_are_read_without_their_comment(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("# command; commit\nprompt,answer,x\n4 A inc ?,5,0.5\n")
    assert m.read_table(path) == [{"prompt": "4 A inc ?", "answer": 5.0, "x": 0.5}]
    assert m.read_problems(path) == [Problem("4 A inc ?", "5", "4 A inc ?")]
