"""VAPO in one file: PPO with a value model and seven techniques that let it train long reasoning.

The paper is "VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks"
(ByteDance Seed, arXiv 2504.05118v3). This file follows its order and cites its sections and equations.
What it does otherwise than textbook PPO, numbered as in the paper's list of techniques:

    1 Value-Pretraining    §4.1          the critic learns from a fixed policy first: `pretrain_critic`
    2 Decoupled-GAE        §4.1          λ = 1 for the critic, a smaller one for the policy: `estimate_advantages`
    3 Length-adaptive GAE  §4.2 eq. 4-5  the policy's λ follows the response's length: `length_adaptive_lambda`
    4 Token-level loss     §4.2 eq. 6-7  every token counts the same, not every response: `loss_weights`
    5 Clip-Higher          §4.3 eq. 8    the ratio may rise further than it may fall: `policy_loss`
    6 Positive-example LM  §4.3 eq. 9-10 correct responses are also imitated: `positive_example_loss`
    7 Group-Sampling       §4.3          several responses to each of fewer prompts: `collect`

and besides, since tasks with a verdict at the end need none of it:

    8 no entropy bonus, no reward shaping, γ = 1, and a critic that shares nothing with the policy;
    9 advantage whitening, value clipping and KL to a reference policy are switches, off by default;
    10 nothing is bootstrapped where the length limit cut a response.

What the paper leaves open is decided where it is used, in a comment that starts with "Choice:".
The one rule that everything keeps: **a loss is a sum over tokens divided by a count taken over the whole
mini-batch on all ranks**. So the gradient does not depend on the split into micro-batches or ranks.

    minivapo train                                   # the command
    for metrics in train(config, task, engine): ...  # the same loop as a library
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minivapo.errors import UserError
from minivapo.interfaces import Engine, Gae, LossFn, Metrics, Outputs, Rollout, Task, World, derive_seed, join
from minivapo.measure import Clock, describe, evaluation_interval, explained_variance, reduce_sums
from minivapo.options.fields import (
    Count,
    Fraction,
    FractionBelowOne,
    Natural,
    NotNegative,
    OpenFraction,
    Positive,
    PositiveFraction,
    check,
)
from minivapo.responses import Draw, as_rollout, held_out_problems, pad_id, respond, training_problem

# ---------------------------------------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, besides the task and the model. Defaults are VAPO at laptop size."""

    # The seven techniques (§4): each ablation of the paper's Table 1 changes exactly one of these fields.
    value_pretrain_steps: Natural = 24
    """Technique 1 (§4.1): maximum number of rollouts of value-pretraining; 0 turns it off (paper: 50)."""
    decoupled_gae: bool = True
    """Technique 2 (§4.1): the critic's targets use lam_critic; if False they use the policy's λ."""
    length_adaptive: bool = True
    """Technique 3 (§4.2): λ_policy = 1 − 1/(α l) for a response of l tokens; if False it is lam."""
    token_level_loss: bool = True
    """Technique 4 (§4.2): mean over all tokens of the mini-batch; if False, mean over samples of per-sample means."""
    clip_high: Positive = 0.28
    """Technique 5 (§4.3): the ratio is clipped to [1 − clip_low, 1 + clip_high]."""
    positive_coef: NotNegative = 0.1
    """Technique 6 (§4.3): weight μ of the LM loss on correct responses; 0 turns it off."""
    group_size: Count = 8
    """Technique 7 (§4.3): responses per prompt, at a fixed batch_size (paper: 16; 1 = no group sampling)."""

    # Advantages (§2 eq. 3, §4.1-4.2)
    advantage: Literal["gae", "group"] = "gae"
    """gae: from a critic. group: GRPO's outcome minus group mean over group deviation, without a critic."""
    gamma: Fraction = 1.0
    """Discount per token; 1 throughout the paper."""
    lam: Fraction = 0.95
    """Fixed λ of the policy's GAE, used when length_adaptive is off."""
    lam_critic: Fraction = 1.0
    """λ of the critic's targets when decoupled_gae is on; 1 makes them Monte-Carlo returns."""
    alpha: Positive = 0.05
    """α of length-adaptive GAE: the horizon 1/(1 − λ) is α times the response length."""
    clip_low: OpenFraction = 0.2
    """Lower clip of the ratio, ε_low."""
    whiten: bool = False
    """Scale advantages to mean 0 and deviation 1 over all tokens of the rollout."""

    # Reward
    reward_correct: float = 1.0
    """Reward of a correct response (on its last token)."""
    reward_wrong: float = 0.0
    """Reward of a wrong response; DAPO uses −1."""
    overlong_share: FractionBelowOne = 0.0
    """DAPO's soft overlong penalty: falls linearly to −1 over this last part of max_new_tokens; 0 turns it off."""
    dynamic_sampling: Natural = 0
    """DAPO: replace groups that are all right or all wrong; the maximum number of extra sampling rounds."""
    verifier_timeout: Positive = 300.0
    """Seconds that the task's verifier may take for one batch of responses; longer ends the run."""

    # Critic
    critic_init: str = "reward-model"
    """policy: its weights; reward-model: those, trained to score at the end; shipped: MODEL/critic; or a folder."""
    reward_model_steps: Natural = 8
    """Rollouts on which the reward model is trained, for critic_init=reward-model."""
    value_pretrain_patience: Count = 6
    """Value-pretraining stops when explained variance has not risen for this number of rollouts."""
    value_pretrain_batch: Natural = 0
    """Responses in a rollout of reward-model training and value-pretraining; 0 = batch_size."""
    value_pretrain_lr: Positive = 1e-3
    """Learning rate of reward-model training and value-pretraining."""
    value_clip: NotNegative = 0.0
    """Clip of the change of a value within an update, in reward units; 0 turns it off."""
    critic_epochs: Count = 1
    """Passes of the critic over each rollout."""

    # Optimisation (§5.1)
    steps: Natural = 24
    """Rollouts to train for (the paper's 5,000 gradient steps, at 16 per rollout, are ≈ 312)."""
    batch_size: Count = 256
    """Responses in one rollout, over all ranks (paper: 8192)."""
    mini_batch: Count = 16
    """Responses in one gradient step, over all ranks (paper: 512, so 16 gradient steps per rollout)."""
    micro_batch: Count = 16
    """Responses in one forward and backward pass of one rank; changes memory and speed, not the result."""
    epochs: Count = 1
    """Passes of the actor over each rollout."""
    actor_lr: Positive = 1e-4
    """Learning rate of the actor (paper: 1e-6), constant after warm-up."""
    critic_lr: Positive = 2e-4
    """Learning rate of the critic (paper: 2e-6): twice the actor's, since it must keep up."""
    warmup: Natural = 16
    """Gradient steps over which both learning rates rise linearly."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm; their norm before that is logged."""
    weight_decay: NotNegative = 0.0
    """AdamW's decoupled weight decay."""
    kl_coef: NotNegative = 0.0
    """Weight of the KL penalty to the starting policy (k3 estimator); 0 needs no reference model."""
    importance_cap: NotNegative = 0.0
    """Cap of the weight π_learner/π_sampler that corrects for a sampler with other numerics; 0 = off."""

    # Sampling and evaluation
    max_new_tokens: Count = 320
    """Length limit of a response, in tokens; reaching it means truncated, not terminated."""
    max_prompt_tokens: Count = 512
    """A longer prompt is an error: tasks drop such prompts by a stated rule."""
    eval_problems: Count = 512
    """Held-out problems of an evaluation."""
    eval_samples: Count = 1
    """Responses per held-out problem."""
    eval_every: Natural = 0
    """Steps between evaluations, beside start and end; 0 = at up to three points, for a tenth of a run at most."""
    eval_temperature: NotNegative = 1.0
    """Sampling temperature of evaluations (paper: 1.0); 0 is greedy."""
    eval_top_p: PositiveFraction = 0.7
    """Top-p of evaluations (paper: 0.7)."""
    seed: int = 0
    """Seeds everything: prompts, sampling, initial critic head."""

    def __post_init__(self) -> None:
        """Refuses values that cannot train: fields outside their range, then fields that contradict each other."""
        check(self)
        batch, group = self.batch_size, self.group_size
        rules = [
            (
                self.advantage == "gae" or group >= 2,
                f"group_size is {group}; group advantages (GRPO, DAPO) compare at least 2 responses.",
            ),
            (
                self.dynamic_sampling == 0 or group >= 2,
                "dynamic_sampling keeps groups of mixed verdicts: set group_size to 2 or more.",
            ),
            (batch % group == 0, f"batch_size {batch} is not a multiple of group_size {group}."),
            (batch % self.mini_batch == 0, f"mini_batch is {self.mini_batch}; it must divide batch_size {batch}."),
            (
                self.value_pretrain_batch % batch == 0,
                f"value_pretrain_batch is {self.value_pretrain_batch}; it must be 0 or a multiple of batch_size.",
            ),
            (self.reward_correct > self.reward_wrong, "reward_correct must be above reward_wrong."),
        ]
        for holds, text in rules:
            if not holds:
                raise UserError(text)

    @property
    def prompts_per_step(self) -> int:
        """Prompts in one rollout, over all ranks."""
        return self.batch_size // self.group_size


VAPO = Config()
PPO = Config(
    value_pretrain_steps=0,
    decoupled_gae=False,
    length_adaptive=False,
    token_level_loss=False,
    clip_high=0.2,
    positive_coef=0.0,
    group_size=1,
)
GRPO = Config(advantage="group", token_level_loss=False, clip_high=0.2, positive_coef=0.0)
DAPO = dataclasses.replace(
    GRPO,
    token_level_loss=True,
    clip_high=0.28,
    dynamic_sampling=3,
    reward_wrong=-1.0,
    overlong_share=0.2,  # 4,096 of 20,480 tokens
)
PRESETS: dict[str, Config] = {
    "vapo": VAPO,
    "ppo": PPO,
    "grpo": GRPO,
    "dapo": DAPO,
    "vapo-wo-value-pretraining": dataclasses.replace(VAPO, value_pretrain_steps=0),
    "vapo-wo-decoupled-gae": dataclasses.replace(VAPO, decoupled_gae=False),
    "vapo-wo-adaptive-gae": dataclasses.replace(VAPO, length_adaptive=False),
    "vapo-wo-clip-higher": dataclasses.replace(VAPO, clip_high=0.2),
    "vapo-wo-token-loss": dataclasses.replace(VAPO, token_level_loss=False),
    "vapo-wo-positive-loss": dataclasses.replace(VAPO, positive_coef=0.0),
    "vapo-wo-group-sampling": dataclasses.replace(VAPO, group_size=1),
}


# ---------------------------------------------------------------------------------------------------------
# §2: the token-level MDP and generalised advantage estimation
# ---------------------------------------------------------------------------------------------------------


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Tensor,
    gamma: float = 1.0,
    lam: float | Float[Tensor, " batch"] = 1.0,
) -> Float[Tensor, "batch time"]:
    """Generalised advantage estimation over the tokens under the mask (VAPO §2, eq. 3).

    Â_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V(s_{t+1}) − V(s_t), where t+1 is the *next token under the
    mask* (gaps are carried over) and V = 0 after the last one. Choice: a truncated response ends there too,
    as in the paper ("ends at EOS or at the length limit"): nothing is bootstrapped.

    Args:
        rewards: r_t, in reward units.
        values: V(s_t), in reward units; where the mask is 0 they are never read (NaN is fine).
        mask: [batch, time], 0/1 or bool; 1 on response tokens.
        gamma: discount per token, in [0, 1].
        lam: λ in [0, 1]; a float, or one for each row.

    Returns:
        Advantages in reward units, 0 where the mask is 0; not whitened. Critic targets are
        `gae(lam=lam_critic) + values`.

    Raises:
        ValueError: shapes differ, or γ or λ lies outside [0, 1].
    """
    if not rewards.shape == values.shape == mask.shape or rewards.ndim != 2:
        raise ValueError(f"gae: shapes differ: {[tuple(x.shape) for x in (rewards, values, mask)]}")
    lam = torch.as_tensor(lam, dtype=values.dtype, device=values.device)
    if not 0 <= gamma <= 1 or not bool(((lam >= 0) & (lam <= 1)).all()):
        raise ValueError(f"gae: gamma {gamma} and every lam must lie in [0, 1]")
    mask = mask.bool()
    rewards, values = torch.where(mask, rewards, 0), torch.where(mask, values, 0)
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0)
        next_advantage = torch.where(here, advantage, next_advantage)
        next_value = torch.where(here, values[:, t], next_value)
    return advantages


# ---------------------------------------------------------------------------------------------------------
# §4.1: value-pretraining and Decoupled-GAE
# ---------------------------------------------------------------------------------------------------------


def pretrain_critic(config: Config, task: Task, engine: Engine) -> Iterator[Metrics]:
    """Value-Pretraining (§4.1): samples of the *fixed* policy, regression on Monte-Carlo returns (λ = 1).

    For critic_init=reward-model the critic is first trained as one (§5.1's starting point). Explained
    variance is measured on each fresh rollout before the critic learns from it, and the phase ends when it
    has not risen for `value_pretrain_patience` rollouts. (§4.1 wants value loss low and explained variance
    high; the paper's sentence says both "low", a slip.)

    Args:
        config: the fields of value-pretraining and reward_model_steps are read.
        task, engine: see `train`.
    """
    progress = engine.progress
    assert engine.critic is not None
    # Choice: one response per prompt, since a critic learns more from many prompts than from many samples of few.
    batch = config.value_pretrain_batch or config.batch_size
    monte_carlo = dataclasses.replace(
        config,
        group_size=1,
        batch_size=batch,
        mini_batch=batch // (config.batch_size // config.mini_batch),  # as many updates per rollout as in training
        dynamic_sampling=0,
        lam_critic=1.0,
        decoupled_gae=True,
        value_clip=0.0,
    )
    reward_model_steps = config.reward_model_steps if config.critic_init == "reward-model" else 0
    while progress.reward_model < reward_model_steps:
        rollout = engine.balance(collect(monte_carlo, task, engine, "reward-model"), monte_carlo.mini_batch)
        loss = update(monte_carlo, rollout, engine, "critic", reward_model_loss, 1, config.value_pretrain_lr)
        progress.reward_model += 1
        yield {"pretrain/reward_model_loss": loss["critic/loss"], "pretrain/rollout": progress.reward_model}
    while progress.pretrain < config.value_pretrain_steps and not progress.pretrain_done:
        rollout = engine.balance(collect(monte_carlo, task, engine, "value-pretraining"), monte_carlo.mini_batch)
        rollout.values = engine.critic.forward(rollout)["values"]
        rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(monte_carlo, rollout, engine.gae)
        metrics = explained_variance(rollout, engine.world)
        ev = metrics["value/explained_variance"]
        lr = config.value_pretrain_lr
        loss = update(monte_carlo, rollout, engine, "critic", critic_loss, config.critic_epochs, lr)
        progress.pretrain += 1
        progress.pretrain_stale = 0 if ev > progress.pretrain_best else progress.pretrain_stale + 1
        progress.pretrain_best = max(ev, progress.pretrain_best)
        progress.pretrain_done = progress.pretrain_stale >= config.value_pretrain_patience
        engine.rollout = rollout
        yield {
            **metrics,
            "pretrain/value_loss": loss["critic/loss"],
            "pretrain/rollout": progress.reward_model + progress.pretrain,
        }
    progress.pretrain_done = True


def value_loss(
    values: Float[Tensor, "batch time"],
    returns: Float[Tensor, "batch time"],
    mask: Tensor,
    count: float | Tensor,
    old_values: Tensor | None = None,
    clip: float = 0.0,
) -> Float[Tensor, ""]:
    """½ Σ_t (V(s_t) − R_t)² / count over the tokens under the mask (VAPO §4.1: regression on returns).

    Args:
        values: V(s_t), in reward units.
        returns: R_t, the targets: Monte-Carlo returns when λ_critic = 1.
        mask: 1 on response tokens.
        count: response tokens in the whole mini-batch, over all ranks.
        old_values, clip: if clip > 0, the larger of the plain error and that of V clipped to old ± clip.
    """
    mask = mask.bool()  # [B, T]
    returns = torch.where(mask, returns, 0)  # [B, T]
    values = torch.where(mask, values, 0)  # [B, T]
    error = (values - returns).square()  # [B, T]
    if clip > 0 and old_values is not None:
        old = torch.where(mask, old_values, 0)  # [B, T]
        near = old + (values - old).clamp(-clip, clip)  # [B, T]
        error = torch.max(error, (near - returns).square())  # [B, T]
    return 0.5 * error.sum() / count  # []


def critic_loss(config: Config, counts: Metrics) -> LossFn:
    """Regression of V(s_t) on the returns (§4.1)."""

    def loss_fn(outputs: Outputs, rows: Rollout) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        assert rows.returns is not None
        loss = value_loss(outputs["values"], rows.returns, rows.mask, counts["tokens"], rows.values, config.value_clip)
        return loss, {"loss": loss.detach()}, {}

    return loss_fn


def reward_model_loss(config: Config, counts: Metrics) -> LossFn:
    """Regression of the score *after the last token* on the reward: it never sees an earlier position (§3.1)."""

    def loss_fn(outputs: Outputs, rows: Rollout) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        score = outputs["scores"].gather(1, rows.last[:, None])[:, 0]  # [B]
        error = (score - rows.rewards.sum(1)).square() * rows.judged  # [B]
        loss = 0.5 * error.sum() / counts["responses"]  # []
        return loss, {"loss": loss.detach()}, {}

    return loss_fn


class Estimates(NamedTuple):
    """What the updates of a rollout aim at; tensors [batch, time]."""

    advantages: Float[Tensor, "batch time"]
    """Â_t of the policy."""
    returns: Float[Tensor, "batch time"] | None
    """R_t, the critic's targets; None without a critic."""
    lam: Float[Tensor, " batch"] | None
    """λ_policy of each response; None without a critic."""


def estimate_advantages(config: Config, rollout: Rollout, gae: Gae = gae) -> Estimates:
    """Advantages and returns of a rollout.

    Decoupled-GAE (§4.1): the critic's targets use λ_critic = 1, the policy's advantages their own λ, which
    follows the length of the response (§4.2, eq. 5). Without a critic (GRPO, DAPO) every token gets its
    response's outcome.

    Args:
        config: which techniques are on.
        rollout: rewards, values, mask and lengths are read; for group advantages `outcome`.
        gae: the engine's implementation of `gae`.
    """
    mask = rollout.mask
    if config.advantage == "group":
        assert rollout.outcome is not None
        return Estimates(rollout.outcome[:, None] * mask, None, None)
    assert rollout.values is not None
    lam = torch.full((len(rollout),), config.lam)  # [B]
    if config.length_adaptive:
        lam = length_adaptive_lambda(rollout.lengths, config.alpha)  # [B]
    lam_critic = config.lam_critic if config.decoupled_gae else lam
    advantages = gae(rollout.rewards, rollout.values, mask, config.gamma, lam)  # [B, T]
    td_lambda = gae(rollout.rewards, rollout.values, mask, config.gamma, lam_critic)  # [B, T]
    return Estimates(advantages, torch.where(mask, td_lambda + rollout.values, 0), lam)


def whiten(advantages: Float[Tensor, "batch time"], mask: Tensor, world: World) -> Float[Tensor, "batch time"]:
    """Advantages scaled to mean 0 and deviation 1 over all tokens of all ranks.

    Args:
        advantages: Â_t, 0 where the mask is 0.
        mask: 1 on response tokens.
        world: the ranks.
    """
    a = advantages.double()
    n, total, square = world.sum(torch.stack([mask.sum().double(), a.sum(), a.square().sum()])).tolist()
    mean = total / max(n, 1)
    std = math.sqrt(max(square / max(n, 1) - mean**2, 0.0))
    return torch.where(mask, (advantages - mean) / (std + 1e-8), 0)


# ---------------------------------------------------------------------------------------------------------
# §4.2: length-adaptive GAE and the token-level loss
# ---------------------------------------------------------------------------------------------------------


def length_adaptive_lambda(lengths: Int[Tensor, " batch"], alpha: float) -> Float[Tensor, " batch"]:
    """λ_policy = 1 − 1/(α l), so that Σ_t λ^t ≈ 1/(1 − λ) = α l (VAPO §4.2, eq. 4-5).

    Choice: clamped to [0, 1]. For l ≤ 1/α the formula is ≤ 0, on which the paper is silent.

    Args:
        lengths: response lengths l in tokens.
        alpha: horizon as a share of the length; the paper uses 0.05.

    Raises:
        ValueError: alpha is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"length_adaptive_lambda: alpha is {alpha}; it must be above 0")
    return (1 - 1 / (alpha * lengths.to(torch.get_default_dtype()))).clamp(0, 1)


def loss_weights(
    mask: Bool[Tensor, "batch time"], lengths: Int[Tensor, " batch"], token_level: bool
) -> Float[Tensor, "batch time"]:
    """Weight of each token in the policy loss, to be divided by a global count (VAPO §4.2, eq. 6→7).

    Token-level (eq. 7): 1 for each token, count = tokens. Sample-level (eq. 6): 1/l for each token of a
    response of l tokens, count = responses.

    Args:
        mask, lengths: response tokens, and their number in each row.
        token_level: eq. 7; else eq. 6.
    """
    weights = mask.to(torch.get_default_dtype())
    return weights if token_level else weights / lengths.clamp(min=1)[:, None]


# ---------------------------------------------------------------------------------------------------------
# §4.3: Clip-Higher, the positive-example LM loss, Group-Sampling
# ---------------------------------------------------------------------------------------------------------


def policy_loss(
    logprobs: Float[Tensor, "batch time"],
    old_logprobs: Float[Tensor, "batch time"],
    advantages: Float[Tensor, "batch time"],
    weights: Tensor,
    count: float | Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Float[Tensor, ""]:
    """Clipped surrogate with separate bounds, Clip-Higher (VAPO §4.3, eq. 8).

    L = −1/count · Σ_t w_t · min(ρ_t Â_t, clip(ρ_t, 1 − ε_low, 1 + ε_high) Â_t), ρ_t = π(a_t)/π_old(a_t).

    Args:
        logprobs, old_logprobs: log π of the taken tokens, now and when they were sampled, in nats.
        advantages: Â_t.
        weights: w_t from `loss_weights`; 0 where there is no response token (nothing is read there).
        count: tokens (token-level) or responses (sample-level) of the whole mini-batch, over all ranks.
        clip_low, clip_high: ε_low, ε_high.
    """
    ratio = torch.exp(torch.where(weights > 0, logprobs - old_logprobs, 0))  # [B, T]
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)  # [B, T]
    advantages = torch.where(weights > 0, advantages, 0)  # [B, T]
    surrogate = torch.min(ratio * advantages, clipped * advantages)  # [B, T]
    return -(weights * surrogate).sum() / count  # []


def positive_example_loss(
    logprobs: Float[Tensor, "batch time"], mask: Tensor, count: float | Tensor
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of all tokens of all correct responses (VAPO §4.3, eq. 9-10).

    L_NLL = −1/count · Σ_{i correct} Σ_t log π(a_{i,t}); 0 when no response is correct.

    Args:
        logprobs: log π of the taken tokens, in nats.
        mask: 1 on tokens of correct responses.
        count: such tokens in the whole mini-batch, over all ranks; 0 gives a loss of 0.
    """
    return -torch.where(mask.bool(), logprobs, 0).sum() / max(float(count), 1.0)


def actor_loss(config: Config, counts: Metrics) -> LossFn:
    """L = L_PPO + μ L_NLL (§4.3, eq. 9), and the KL penalty where it is on.

    Args:
        config: which techniques are on, and their constants.
        counts: of the whole mini-batch over all ranks, see `count_tokens`.
    """

    def loss_fn(outputs: Outputs, rows: Rollout) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        logprobs, old = outputs["logprobs"], rows.old_logprobs  # [B, T]
        assert old is not None and rows.advantages is not None
        weights = loss_weights(rows.mask, rows.lengths, config.token_level_loss)  # [B, T]
        if config.importance_cap > 0:
            weights = weights * torch.exp(old - rows.sampled_logprobs).clamp(max=config.importance_cap)  # [B, T]
        count = counts["tokens"] if config.token_level_loss else counts["responses"]
        ppo = policy_loss(logprobs, old, rows.advantages, weights, count, config.clip_low, config.clip_high)  # []
        positive = logprobs.new_zeros(())  # []
        if config.positive_coef > 0:
            in_correct = rows.mask & rows.correct[:, None]  # [B, T]
            positive = positive_example_loss(logprobs, in_correct, counts["positive_tokens"])  # []
        loss = ppo + config.positive_coef * positive  # []
        sums = {"loss_policy": ppo.detach(), "loss_positive": positive.detach()}
        if rows.ref_logprobs is not None:
            gap = torch.where(rows.mask, rows.ref_logprobs - logprobs, 0)  # [B, T]
            kl = ((gap.exp() - gap - 1) * weights).sum() / count  # []
            loss = loss + config.kl_coef * kl  # []
            sums["kl_reference"] = kl.detach()
        ratios, extremes = ratio_metrics(config, logprobs.detach(), rows, counts["teaching_tokens"])
        return loss, {**sums, **ratios, "loss": loss.detach()}, extremes

    return loss_fn


def ratio_metrics(
    config: Config, logprobs: Float[Tensor, "batch time"], rows: Rollout, tokens: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is watched of the ratio ρ_t: shares of clipped tokens and the KL estimate, and its largest values.

    Args:
        config: the clip.
        logprobs: log π of the taken tokens now, without gradient.
        rows: what they were when sampled, and the advantages.
        tokens: response tokens that teach, of the whole mini-batch, over all ranks.

    Returns:
        Sums, divided by `tokens`, and maxima.
    """
    assert rows.old_logprobs is not None and rows.advantages is not None
    log_ratio = torch.where(rows.mask, logprobs - rows.old_logprobs, 0)  # [B, T]
    ratio = log_ratio.exp()  # [B, T]
    sums = {
        "clip_low": ((ratio < 1 - config.clip_low) & (rows.advantages < 0)).sum() / tokens,
        "clip_high": ((ratio > 1 + config.clip_high) & (rows.advantages > 0)).sum() / tokens,
        "approx_kl": ((ratio - 1 - log_ratio) * rows.mask).sum() / tokens,
    }
    return sums, {"ratio_max": ratio.max(), "ratio_inverse_max": (-log_ratio).exp().max()}


def collect(config: Config, task: Task, engine: Engine, stream: str) -> Rollout:
    """Group-Sampling (§4.3): this rank's part of a rollout, fewer prompts and more responses to each.

    Args:
        config: batch_size = prompts × group_size over all ranks.
        task: gives the problems and judges the responses.
        engine: samples; its progress counts prompts and responses.
        stream: names what the rollout is for; part of the sampling seed.
    """
    groups = sample_groups(config, task, engine, stream, config.prompts_per_step // engine.world.size)
    if config.dynamic_sampling:
        groups = refill(config, task, engine, stream, groups)
    rollout = join(groups, pad_id(engine.tokenizer))
    rollout.number = row_numbers(config, engine.world, engine.progress.samples)
    return rollout


# ---------------------------------------------------------------------------------------------------------
# Groups of responses: how they are sampled and dealt to ranks, and what GRPO and DAPO make of them
# ---------------------------------------------------------------------------------------------------------


def sample_groups(
    config: Config, task: Task, engine: Engine, stream: str, count: int, attempt: int = 0
) -> list[Rollout]:
    """So many groups on this rank, each a rollout of its own, sampled and judged.

    Each verdict becomes a reward on the last token (§2: the reward is sparse); a task that gives scores in [0, 1]
    has rewards between those of a wrong and of a correct response.

    Args:
        config: group_size, rewards, limits and seed are read.
        task: gives the problems and judges the responses.
        engine: samples.
        stream: part of the sampling seed.
        count: groups wanted on this rank; every rank asks at once, each for as many as it needs.
        attempt: part of the sampling seed.
    """
    n, numbers = config.group_size, deal_prompts(engine, count, config.group_size)
    if not numbers:  # nothing to do here, but ranks that share a tensor-parallel sampler work together
        engine.sampler.generate([], n, 0, engine.actor.version)
        return []
    problems = [training_problem(task, i, config.seed) for i in numbers]
    seed = derive_seed(config.seed, stream, numbers[0], attempt, engine.world.rank)
    draw = Draw(n, seed, engine.actor.version, config.max_prompt_tokens, config.verifier_timeout)
    responses = respond(task, problems, engine.tokenizer, engine.sampler, draw)
    rollout = as_rollout(responses, [i for i in numbers for _ in range(n)], pad_id(engine.tokenizer))
    score = rollout.rewards.sum(1)  # [B]
    reward = score * config.reward_correct + (1 - score) * config.reward_wrong  # [B]
    reward = reward + overlong_penalty(rollout.lengths, config.max_new_tokens, config.overlong_share)  # [B]
    rollout.rewards[torch.arange(len(rollout)), rollout.last] = reward * rollout.judged
    rollout.outcome = group_advantages(rollout.rewards.sum(1), rollout.judged, n)  # [B]
    lowest = torch.where(rollout.judged, score, 1.0).view(-1, n).amin(1)  # [prompts]
    highest = torch.where(rollout.judged, score, 0.0).view(-1, n).amax(1)  # [prompts]
    rollout.mixed = (lowest < highest).repeat_interleave(n)  # [B]
    return [rollout.rows(range(start, start + n)) for start in range(0, len(rollout), n)]


def deal_prompts(engine: Engine, count: int, group_size: int) -> list[int]:
    """Numbers of the next prompts of the stream that are this rank's: they go to the ranks in turn.

    Args:
        engine: its progress is advanced by the prompts of all ranks.
        count: prompts that this rank wants.
        group_size: responses to each of them.
    """
    world, progress = engine.world, engine.progress
    wanted = torch.zeros(world.size, dtype=torch.long)
    wanted[world.rank] = count
    wanted = world.sum(wanted).tolist()
    owners = [rank for turn in range(max(wanted)) for rank in range(world.size) if turn < wanted[rank]]
    numbers = [progress.prompts + i for i, rank in enumerate(owners) if rank == world.rank]
    progress.prompts += len(owners)
    progress.samples += len(owners) * group_size
    return numbers


def refill(config: Config, task: Task, engine: Engine, stream: str, groups: list[Rollout]) -> list[Rollout]:
    """DAPO's dynamic sampling: groups that are all right or all wrong teach nothing and are replaced.

    What is still missing after the last round is filled with them, so that the batch always has its size.

    Args:
        config: at most `dynamic_sampling` extra rounds.
        task, engine, stream: see `sample_groups`.
        groups: this rank's groups so far.
    """

    def mixed(group: Rollout) -> bool:
        return group.mixed is not None and bool(group.mixed.all())

    kept, spare = [g for g in groups if mixed(g)], [g for g in groups if not mixed(g)]
    for attempt in range(1, config.dynamic_sampling + 1):
        missing = len(groups) - len(kept)
        if not engine.world.sum(torch.tensor(missing)):
            break
        for group in sample_groups(config, task, engine, stream, missing, attempt):
            (kept if mixed(group) else spare).append(group)
    return (kept + spare)[: len(groups)]


def row_numbers(config: Config, world: World, key: int) -> Int[Tensor, " batch"]:
    """`Rollout.number` of this rank's rows: the places of all rows, shuffled, the same for any number of ranks.

    Choice: mini-batches are cut from shuffled rows. A mini-batch of one prompt's group would divide the token-level
    loss by that group's own tokens.

    Args:
        config: batch_size, group_size and seed are read.
        world: the ranks; they have the groups of the rollout in turn.
        key: another one for each rollout.
    """
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "mini-batches", key))
    shuffled = torch.randperm(config.batch_size, generator=generator).view(-1, config.group_size)
    return shuffled[world.rank :: world.size].flatten()


def group_advantages(
    rewards: Float[Tensor, " batch"], judged: Bool[Tensor, " batch"], group_size: int
) -> Float[Tensor, " batch"]:
    """GRPO's outcome advantage: (R − mean)/(std + 1e-6) within each group of consecutive rows.

    Rows that the verifier failed on are left out of mean and deviation and get 0. Choice: the population
    deviation. A group of equal rewards gets 0 everywhere.

    Args:
        rewards, judged: of each response, and whether it has a verdict.
        group_size: responses to one prompt.
    """
    # float64: in float32 the mean of equal rewards can miss them by more than the 1e-6 below forgives.
    r, w = rewards.double().view(-1, group_size), judged.double().view(-1, group_size)
    n = w.sum(1, keepdim=True).clamp(min=1)
    mean = (r * w).sum(1, keepdim=True) / n
    std = (((r - mean).square() * w).sum(1, keepdim=True) / n).sqrt()
    return ((r - mean) / (std + 1e-6) * w).view(-1).to(rewards.dtype)


def overlong_penalty(lengths: Int[Tensor, " batch"], max_new_tokens: int, share: float) -> Float[Tensor, " batch"]:
    """DAPO's soft overlong penalty: 0 at first, then falling linearly to −1 at the length limit.

    Args:
        lengths: response lengths in tokens.
        max_new_tokens: the length limit.
        share: the part of the limit, at its end, over which the penalty falls; 0 turns it off.
    """
    if share == 0:
        return torch.zeros(len(lengths))
    buffer = share * max_new_tokens
    return -((lengths - (max_new_tokens - buffer)) / buffer).clamp(0, 1)


# ---------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------


def train_step(config: Config, task: Task, engine: Engine) -> Metrics:
    """One rollout and its gradient steps: sample, look, estimate, learn, hand the new weights to the sampler.

    Args:
        config, task, engine: see `train`.
    """
    clock = Clock()
    with clock("sample"):
        rollout = engine.balance(collect(config, task, engine, "train"), config.mini_batch)
    with clock("forward"):
        look(rollout, engine)
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(config, rollout, engine.gae)
    if config.whiten:
        rollout.advantages = whiten(rollout.advantages, rollout.mask, engine.world)
    metrics = describe(rollout, engine.world)
    with clock("update"):
        if engine.critic is not None:
            metrics |= update(config, rollout, engine, "critic", critic_loss, config.critic_epochs)
        metrics |= update(config, rollout, engine, "actor", actor_loss, config.epochs)
    with clock("sync"):
        engine.sampler.sync(engine.actor)
    engine.rollout = rollout
    return metrics | {"samples": engine.progress.samples} | engine.metrics() | clock.metrics(metrics["response/tokens"])


def look(rollout: Rollout, engine: Engine) -> None:
    """Fills in what the networks say of a rollout: log π(a_t), entropy, V(s_t), and log π_ref(a_t)."""
    # Choice: not the sampler's log-probs, so that ρ_t = 1 before the first update with any sampler.
    policy = engine.actor.forward(rollout)
    rollout.old_logprobs, rollout.entropy = policy["logprobs"], policy["entropy"]  # [B, T]
    if engine.critic is not None:
        rollout.values = engine.critic.forward(rollout)["values"]  # [B, T]
    if engine.reference is not None:
        rollout.ref_logprobs = engine.reference.forward(rollout)["logprobs"]  # [B, T]


def update(
    config: Config,
    rollout: Rollout,
    engine: Engine,
    name: Literal["actor", "critic"],
    make_loss: Callable[[Config, Metrics], LossFn],
    epochs: int,
    constant_lr: float | None = None,
) -> Metrics:
    """One optimizer step for each mini-batch; mini-batch k holds the rows numbered k · mini_batch and following.

    Args:
        config: mini_batch, learning rates and warm-up are read.
        rollout: this rank's rows, in any order; a rank may hold any number of a mini-batch's rows.
        engine: its learner of that name is trained.
        name: "actor" or "critic".
        make_loss: builds the loss from the counts of a mini-batch, which are taken over all ranks, here and once.
        epochs: passes over the rollout.
        constant_lr: instead of the warm-up to the configured rate.

    Returns:
        Means over the steps, and maxima, under `name/…`.
    """
    world, learner = engine.world, engine.actor if name == "actor" else engine.critic
    assert learner is not None
    batch_of = rollout.number // config.mini_batch  # [B]
    batches = 1 + int(world.max(torch.tensor(max([0, *batch_of.tolist()]))))
    peak_lr = config.actor_lr if name == "actor" else config.critic_lr
    lr, steps = 0.0, list[tuple[Metrics, Metrics]]()
    for _ in range(epochs):
        for k in range(batches):
            rows = rollout.rows((batch_of == k).nonzero()[:, 0])
            teaching = rows_that_teach(config, rows) if name == "actor" else rows
            lr = constant_lr or peak_lr * min(1.0, (learner.version + 1) / max(config.warmup, 1))
            steps.append(learner.step(teaching, make_loss(config, count_tokens(rows, teaching, world)), lr))
    sums, maxima = [s for s, _ in steps], [m for _, m in steps]
    means = {key: total / len(steps) for key, total in reduce_sums(world, sums).items()}
    largest = {key: max(m[key] for m in maxima) for key in maxima[0]}
    peaks = world.max(torch.tensor(list(largest.values()), dtype=torch.float64)).tolist()
    found = {**means, **dict(zip(largest, peaks, strict=True)), "lr": lr}
    found["grad_norm"] = sum(m["grad_norm"] for m in maxima) / len(steps)
    return {f"{name}/{key}": value for key, value in found.items()}


def rows_that_teach(config: Config, rows: Rollout) -> Rollout:
    """The rows whose actor loss can have a gradient: a pass over the others would change nothing.

    A group that is all right or all wrong gives GRPO and DAPO advantages of 0. Where nothing teaches, one row stays and
    no loss counts it: a mini-batch without any gradient is a step of AdamW all the same.

    Args:
        config: positive_coef and kl_coef are read, which teach where advantages do not.
        rows: this rank's rows of a mini-batch.
    """
    assert rows.advantages is not None
    if config.kl_coef > 0 or len(rows) == 0:
        return rows
    teaches = (rows.advantages != 0).any(1)  # [B]
    if config.positive_coef > 0:
        teaches |= rows.correct
    if teaches.any():
        return rows.rows(teaches.nonzero()[:, 0])
    shortest = rows.rows([int(rows.totals.argmin())])
    shortest.mask = torch.zeros_like(shortest.mask)
    return shortest


def count_tokens(rows: Rollout, teaching: Rollout, world: World) -> Metrics:
    """Response tokens, responses, and tokens of correct responses and of those that teach; a mini-batch, all ranks."""
    of_correct = rows.mask & rows.correct[:, None]
    local = [rows.mask.sum(), rows.judged.sum(), of_correct.sum(), teaching.mask.sum()]
    tokens, responses, positive, taught = world.sum(torch.stack(local).double()).tolist()
    return {  # max(…, 1): a mini-batch that the verifier failed on entirely has no tokens, and no loss
        "tokens": max(tokens, 1.0),
        "responses": max(responses, 1.0),
        "positive_tokens": positive,
        "teaching_tokens": max(taught, 1.0),
    }


def evaluate(config: Config, task: Task, engine: Engine) -> Metrics:
    """Mean pass rate over eval_samples responses to each held-out problem (§5.1: temperature 1, top-p 0.7).

    Args:
        config: the fields of evaluation are read.
        task, engine: see `train`.
    """
    world = engine.world
    problems = held_out_problems(task, config.eval_problems)[world.rank :: world.size]
    draw = Draw(
        n=config.eval_samples, seed=derive_seed(config.seed, "eval", world.rank), version=engine.actor.version,
        max_prompt_tokens=config.max_prompt_tokens, timeout=config.verifier_timeout,
        temperature=config.eval_temperature, top_p=config.eval_top_p,
    )  # fmt: skip
    responses = engine.evaluated = respond(task, problems, engine.tokenizer, engine.sampler, draw)
    totals = {
        "n": float(len(responses)),
        "accuracy": float(sum(r.verdict is True for r in responses)),
        "length": float(sum(len(r.sample.tokens) for r in responses)),
        "truncated": float(sum(not r.sample.terminated for r in responses)),
        "verifier_errors": float(sum(r.verdict is None for r in responses)),
    }
    totals = reduce_sums(world, [totals])
    return {f"eval/{key}": value / totals["n"] for key, value in totals.items() if key != "n"}


def train(config: Config, task: Task, engine: Engine) -> Iterator[Metrics]:
    """Trains the engine's actor, yielding metrics; the engine can be saved between any two of them.

    The first metrics are those of the base policy (step 0, `eval/…`), then one line for each rollout of
    reward-model training and value-pretraining (step 0, `pretrain/…`), then one line for each step.

    Args:
        config: what to do; see `PRESETS`.
        task: where problems come from and who judges the responses.
        engine: what it runs on, built for the same config.

    Raises:
        UserError: the configuration does not fit the engine or the number of ranks.
        NonFiniteError: a loss or gradient was not finite; the weights are those before that step.
    """
    world, progress = engine.world, engine.progress
    for name in ("advantage", "critic_init", "kl_coef", "max_new_tokens", "max_grad_norm", "weight_decay"):
        ours, built = getattr(config, name), getattr(engine.config, name)
        if bool(ours) != bool(built) if name == "kl_coef" else ours != built:
            raise UserError(f"{name} is {ours}, but the engine was built with {built}: build it with this config.")
    for name, n in (("prompts per step", config.prompts_per_step), ("mini_batch", config.mini_batch)):
        if n % world.size:
            raise UserError(f"{name} ({n}) must be a multiple of the {world.size} ranks.")

    def emit(metrics: Metrics) -> Metrics:
        progress.lines += 1
        return {"step": progress.step, **metrics}

    engine.sampler.sync(engine.actor)
    if progress.lines == 0:
        yield emit(evaluate(config, task, engine))
    if engine.critic is not None:
        for metrics in pretrain_critic(config, task, engine):
            yield emit(metrics)
    responses = config.eval_problems * config.eval_samples
    every = evaluation_interval(config.eval_every, config.steps, responses / config.batch_size)
    while progress.step < config.steps:
        metrics = train_step(config, task, engine)
        progress.step += 1
        periodic = progress.step % every == 0
        if progress.step == config.steps or periodic:
            metrics |= evaluate(config, task, engine)
        yield emit(metrics)
