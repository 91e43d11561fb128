"""The one home of what every metric means: shown in the report beside its curve, and in docs/metrics.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricInfo:
    """What a person needs to read one metric."""

    title: str
    """Short name, for the head of a chart."""
    unit: str
    """tokens, nats, reward, seconds, share (0 to 1), …"""
    meaning: str
    """What is measured."""
    bad: str
    """Which values are a bad sign, and of what; empty where no value is."""
    better: Literal["higher", "lower", ""] = ""
    """Which way is better, where one is."""


GROUPS: dict[str, str] = {
    "eval": "Evaluation on held-out problems",
    "reward": "Reward of the training rollouts",
    "response": "Responses",
    "policy": "Policy",
    "value": "Value model",
    "advantage": "Advantages",
    "actor": "Actor update",
    "critic": "Critic update",
    "pretrain": "Reward model and value-pretraining",
    "time": "Time and cost",
}
"""Prefix of a metric's name -> heading, in the order in which they are shown."""

HEADLINES = (
    "eval/accuracy",
    "reward/accuracy",
    "response/length",
    "policy/entropy",
    "value/explained_variance",
    "actor/clip_high",
)
"""The handful of numbers that matter most, in reading order."""

_QUARTERS = {"1": "first", "2": "second", "3": "third", "4": "last"}

METRICS: dict[str, MetricInfo] = {
    "step": MetricInfo(
        "Step", "rollouts", "Rollouts trained on so far; 0 before training: the base policy and pretraining.", ""
    ),
    "samples": MetricInfo(
        "Responses sampled",
        "responses",
        "Responses sampled for training so far, with those of the reward model, of value-pretraining and those "
        "that dynamic sampling threw away. The fair horizontal axis between methods.",
        "",
    ),
    "time/cpu_seconds": MetricInfo(
        "Processor time", "seconds", "Processor time of the process so far, summed over cores.", "", "lower"
    ),
    # Evaluation
    "eval/accuracy": MetricInfo(
        "Held-out accuracy",
        "share",
        "Share of responses to held-out problems whose final answer is right (§5.1: mean over samples, at "
        "temperature 1 and top-p 0.7). The number a run is judged by.",
        "No rise, while reward/accuracy rises: it has learnt its training prompts or fools the verifier. A fall "
        "with a fall in response/length: the collapse of vanilla PPO (§3.1).",
        "higher",
    ),
    "eval/length": MetricInfo(
        "Held-out response length",
        "tokens",
        "Mean length of the responses of an evaluation.",
        "A collapse to a few tokens: the policy answers without reasoning.",
    ),
    "eval/truncated": MetricInfo(
        "Held-out truncated",
        "share",
        "Share of evaluation responses cut by the length limit.",
        "Above a few per cent: raise max_new_tokens, or the policy repeats itself.",
        "lower",
    ),
    "eval/verifier_errors": MetricInfo(
        "Held-out verifier errors",
        "share",
        "Share of evaluation responses on which the verifier itself failed; they count as wrong.",
        "Anything above 0: the accuracy is understated; look at the verifier.",
        "lower",
    ),
    # Reward
    "reward/mean": MetricInfo(
        "Mean reward",
        "reward",
        "Mean reward of a training response, penalties for length included.",
        "Flat from the start: the task is too hard for the policy (see reward/mixed_groups), or learning rates are "
        "too low.",
        "higher",
    ),
    "reward/accuracy": MetricInfo(
        "Training accuracy",
        "share",
        "Share of training responses that are right. They are sampled at temperature 1 and top-p 1, so it lies "
        "below eval/accuracy.",
        "0: no response is ever right and there is nothing to learn from; take easier problems. 1: nothing left.",
        "higher",
    ),
    "reward/verifier_errors": MetricInfo(
        "Verifier errors",
        "share",
        "Share of training responses on which the verifier failed; they are left out of every loss.",
        "Above 0.01: the verifier hides part of the batch, perhaps just the hard part.",
        "lower",
    ),
    "reward/mixed_groups": MetricInfo(
        "Groups of mixed verdicts",
        "share",
        "Share of prompts whose group has right and wrong responses: those that tell good from bad (§4.3, "
        "Group-Sampling). Always 0 at group_size 1.",
        "Near 0 at group_size > 1: the problems are all too hard or all too easy.",
    ),
    # Response
    "response/length": MetricInfo(
        "Response length",
        "tokens",
        "Mean length of a training response. In the paper it grows as reasoning gets better.",
        "A steep fall: length collapse from a biased critic (§3.1). A climb to the limit: see response/truncated.",
    ),
    "response/length_correct": MetricInfo(
        "Length of right responses",
        "tokens",
        "Mean length of the right responses; 0 if there is none.",
        "Much shorter than the wrong ones: the policy is rewarded for problems that need no reasoning.",
    ),
    "response/length_wrong": MetricInfo(
        "Length of wrong responses",
        "tokens",
        "Mean length of the wrong responses; 0 if there is none.",
        "At the length limit: wrong responses are the truncated ones.",
    ),
    "response/length_max": MetricInfo(
        "Longest response",
        "tokens",
        "Length of the longest response of the rollout; sets memory and time.",
        "At max_new_tokens in every step: see response/truncated.",
    ),
    "response/truncated": MetricInfo(
        "Truncated responses",
        "share",
        "Share of responses that hit max_new_tokens before they ended. They earn no answer.",
        "Above a few per cent and rising: the limit is too low, or the policy repeats itself (overlong_share helps).",
        "lower",
    ),
    "response/tokens": MetricInfo(
        "Tokens in the rollout", "tokens", "Response tokens of the whole rollout: what token-level loss divides by.", ""
    ),
    # Policy
    "policy/entropy": MetricInfo(
        "Entropy",
        "nats per token",
        "Mean entropy of the next-token distribution: how much the policy still explores. In the paper it falls, "
        "but does not collapse; Clip-Higher (§4.3) holds it up.",
        "Near 0 early: entropy collapse; all samples of a prompt become the same. Rising without end: the policy "
        "dissolves into noise; lower actor_lr.",
    ),
    "policy/sampler_gap_mean": MetricInfo(
        "Sampler gap, mean",
        "nats",
        "Mean of |log π_learner − log π_sampler| of the sampled tokens: the sampler and the learner must be the "
        "same policy. About 1e-6 in fp32, 1e-2 in bf16.",
        "About 1: the sampler holds old weights, or samples from a tempered or truncated distribution.",
        "lower",
    ),
    "policy/sampler_gap_max": MetricInfo(
        "Sampler gap, largest",
        "nats",
        "Largest such difference in the rollout.",
        "Above 1 with a small mean: rare tokens differ in numerics; importance_cap corrects for it.",
        "lower",
    ),
    # Value
    "value/mean": MetricInfo(
        "Mean value",
        "reward",
        "Mean of V(s_t) over tokens; should lie near reward/mean.",
        "Far from reward/mean: the critic is biased, and with λ < 1 so are the advantages (§3.1).",
    ),
    "value/explained_variance": MetricInfo(
        "Explained variance",
        "share",
        "1 − Var(R − V)/Var(R) over all tokens, R the Monte-Carlo return: how much of the outcome the critic "
        "foresees. 0 is a constant guess, 1 is perfect. Measured before the critic learns from the rollout.",
        "Below 0: worse than a constant; advantages are noise. Falling in training: the critic cannot keep up "
        "with the policy; raise critic_lr or critic_epochs.",
        "higher",
    ),
    "value/explained_variance_q*": MetricInfo(
        "Explained variance, {} quarter",
        "share",
        "Explained variance on the tokens in the {} quarter of each response. Late tokens are easier to judge.",
        "Below 0 at the start with good values at the end: the critic of §3.1, which scores early tokens badly; "
        "value-pretraining mends it.",
        "higher",
    ),
    # Advantage
    "advantage/mean": MetricInfo(
        "Mean advantage",
        "reward",
        "Mean of Â_t over tokens; near 0 when the critic is unbiased.",
        "Far from 0 for long: every token is pushed the same way, whatever it says; a biased critic.",
    ),
    "advantage/std": MetricInfo(
        "Deviation of advantages",
        "reward",
        "Standard deviation of Â_t over tokens: the strength of the learning signal.",
        "Near 0: nothing left to learn, or a collapsed critic.",
    ),
    "advantage/lam_min": MetricInfo(
        "Smallest λ of the policy",
        "",
        "λ_policy of the shortest response: 1 − 1/(α l), clamped to [0, 1] (§4.2, eq. 5); constant if "
        "length_adaptive is off.",
        "0: responses are shorter than 1/α tokens and see one-step errors only; raise alpha.",
    ),
    "advantage/lam_max": MetricInfo(
        "Largest λ of the policy", "", "λ_policy of the longest response (§4.2, eq. 5).", ""
    ),
    "advantage/lam_zero": MetricInfo(
        "Responses with λ = 0",
        "share",
        "Share of responses whose λ_policy is 0, since they have no more than 1/α tokens (§4.2, eq. 5).",
        "Half or more: the median response sees one-step errors only, and the critic's noise as it is; raise alpha.",
    ),
    # Actor
    "actor/loss": MetricInfo(
        "Actor loss", "", "L_PPO + μ L_NLL (§4.3, eq. 9), mean over mini-batches. Its level says little.", "NaN."
    ),
    "actor/loss_policy": MetricInfo(
        "Policy loss",
        "reward",
        "Clipped surrogate L_PPO (eq. 8), mean over mini-batches. Hovers near minus the mean advantage.",
        "Swings that grow: updates are too large.",
    ),
    "actor/loss_positive": MetricInfo(
        "Positive-example loss",
        "nats per token",
        "L_NLL: mean −log π over all tokens of all right responses (eq. 10), before its weight μ. 0 if none is "
        "right or positive_coef is 0.",
        "Rising: right responses become less likely.",
    ),
    "actor/kl_reference": MetricInfo(
        "KL to the start",
        "nats per token",
        "KL from the starting policy (k3 estimator); there only if kl_coef is on. Off in the paper.",
        "A jump: the policy left the region that the penalty should hold it in.",
    ),
    "actor/clip_low": MetricInfo(
        "Clipped below",
        "share",
        "Share of the update's tokens with ratio < 1 − ε_low and a negative advantage: they get no gradient.",
        "Above 0.1: steps are too large; lower actor_lr or take fewer mini-batches.",
    ),
    "actor/clip_high": MetricInfo(
        "Clipped above",
        "share",
        "Share of the update's tokens with ratio > 1 + ε_high and a positive advantage: they get no gradient. "
        "Clip-Higher (§4.3) leaves more room here for unlikely tokens.",
        "Above 0.1: steps are too large. Exactly 0 throughout: the clip never acts.",
    ),
    "actor/approx_kl": MetricInfo(
        "Approximate KL of the update",
        "nats per token",
        "Mean of ρ − 1 − log ρ over the update's tokens: how far the policy moved within the step. Responses of GRPO "
        "and DAPO whose group has no contrast are not in the update.",
        "Above about 0.05, or spikes: updates are too large.",
    ),
    "actor/ratio_max": MetricInfo(
        "Largest ratio",
        "",
        "Largest π/π_old of a token in the step.",
        "Above about 10 in the first mini-batches: the sampler and the learner disagree.",
    ),
    "actor/ratio_inverse_max": MetricInfo(
        "Largest inverse ratio",
        "",
        "Largest π_old/π of a token in the step: one over the smallest ratio.",
        "Hundreds or more: some token was all but forbidden in one step.",
    ),
    "actor/grad_norm": MetricInfo(
        "Gradient norm of the actor",
        "",
        "Norm before it is scaled down to max_grad_norm, mean over mini-batches.",
        "Spikes of ten times the usual: look at the batch. 0: no signal.",
    ),
    "actor/lr": MetricInfo(
        "Learning rate of the actor",
        "",
        "Rate used in the last mini-batch: linear warm-up, then constant (§5.1).",
        "",
    ),
    # Critic
    "critic/loss": MetricInfo(
        "Critic loss",
        "reward²",
        "½ (V − R)² per token, mean over mini-batches; R are the critic's targets (λ_critic = 1 in VAPO, §4.1).",
        "Rising: the critic cannot keep up. Very small with low explained variance: outcomes hardly vary.",
        "lower",
    ),
    "critic/grad_norm": MetricInfo(
        "Gradient norm of the critic",
        "",
        "Norm before it is scaled down to max_grad_norm, mean over mini-batches.",
        "Spikes of ten times the usual.",
    ),
    "critic/lr": MetricInfo(
        "Learning rate of the critic",
        "",
        "Rate used in the last mini-batch; twice the actor's in the paper, since the critic must keep up.",
        "",
    ),
    # Pretraining
    "pretrain/rollout": MetricInfo(
        "Pretraining rollout", "rollouts", "Rollouts of the fixed policy used before training, both phases.", ""
    ),
    "pretrain/reward_model_loss": MetricInfo(
        "Reward-model loss",
        "reward²",
        "½ (score − R)² of the score after the last token: the reward model that the critic starts from (§5.1).",
        "No fall below the variance of the reward / 2: it has learnt nothing.",
        "lower",
    ),
    "pretrain/value_loss": MetricInfo(
        "Value-pretraining loss",
        "reward²",
        "½ (V − R)² per token against Monte-Carlo returns of the fixed policy (§4.1).",
        "Rising again: overfitting or a learning rate too high.",
        "lower",
    ),
    "actor/imbalance": MetricInfo(
        "Imbalance over ranks (actor)",
        "ratio",
        "On a cluster: the busiest rank's work in a mini-batch over the mean (1 is perfect); the largest of the step.",
        "Above about 1.2: ranks wait for each other; more responses per mini-batch balance better.",
        "lower",
    ),
    "critic/imbalance": MetricInfo(
        "Imbalance over ranks (critic)",
        "ratio",
        "On a cluster: the busiest rank's work in a mini-batch over the mean (1 is perfect); the largest of the step.",
        "Above about 1.2: ranks wait for each other; more responses per mini-batch balance better.",
        "lower",
    ),
    # Time
    "time/sample": MetricInfo("Sampling", "seconds", "Sampling and judging the rollout.", ""),
    "time/forward": MetricInfo(
        "Forward passes", "seconds", "Log-probs, values and reference log-probs of the rollout.", ""
    ),
    "time/update": MetricInfo("Updates", "seconds", "Gradient steps of critic and actor.", ""),
    "time/sync": MetricInfo(
        "Weight transfer",
        "seconds",
        "Giving the actor's new weights to the sampler; none to copy on one device.",
        "A large share of time/total on a cluster: see the cluster guide.",
    ),
    "time/total": MetricInfo(
        "Step", "seconds", "Wall-clock time of the whole step, evaluation left out.", "Rising: longer responses."
    ),
    "time/tokens_per_second": MetricInfo(
        "Throughput",
        "tokens per second",
        "Response tokens trained on per second of the whole step.",
        "Falling at constant length: another process, or memory that swaps.",
        "higher",
    ),
    "time/straggler_share": MetricInfo(
        "Lost to stragglers",
        "share",
        "On a cluster: share of the ranks' sampling time spent waiting for the slowest engine.",
        "Above about 0.3: responses too unequal for so many small engines.",
        "lower",
    ),
    "time/empty_slots": MetricInfo(
        "Empty decode slots",
        "share",
        "On a cluster: share of vLLM's decode slots that stand empty while a batch drains.",
        "Near 1: few long responses hold everyone up.",
        "lower",
    ),
}
"""Name, or pattern with one `*` at its end, -> what it means."""


def explain(name: str) -> MetricInfo | None:
    """What the metric of this name means; None if nobody has written it down."""
    if name in METRICS:
        return METRICS[name]
    match = re.fullmatch(r"value/explained_variance_q([1-4])", name)
    if match:
        info, quarter = METRICS["value/explained_variance_q*"], _QUARTERS[match[1]]
        return MetricInfo(info.title.format(quarter), info.unit, info.meaning.format(quarter), info.bad, info.better)
    return None


def heading(name: str) -> str:
    """Heading under which a metric is shown: that of its prefix."""
    prefix = name.partition("/")[0] if "/" in name else "time"
    return GROUPS.get(prefix, prefix)


def markdown() -> str:
    """All metrics as one Markdown page with a table for each heading: the text of docs/metrics.md."""
    lines = [
        "# Every metric",
        "",
        "Each line of `metrics.jsonl` has `step` and some of these. "
        "All are ratios of sums over all ranks: the number of GPUs does not change them.",
    ]
    sections: dict[str, list[str]] = {title: [] for title in GROUPS.values()}
    for name, info in METRICS.items():
        title = info.title.format("each")
        cells = [f"`{name}`", title, info.unit or "–", info.meaning.format("given"), info.bad or "–"]
        sections[heading(name)].append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    for title, rows in sections.items():
        lines += ["", f"## {title}", "", "| name | title | unit | what it is | a bad sign |", "|---|---|---|---|---|"]
        lines += rows
    return "\n".join(lines) + "\n"
