"""VAPO in one file: PPO with a value model, repaired in seven places so that it trains long reasoning.

The paper is "VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks"
(ByteDance Seed, arXiv 2504.05118v3). This file follows its order, and cites its sections and equations:

    1 Value-Pretraining   §4.1          `pretrain_critic`
    2 Decoupled-GAE       §4.1          `estimate_advantages`, `Config.decoupled_gae`
    3 Length-adaptive GAE §4.2 eq. 4-5  `length_adaptive_lambda`
    4 Token-level loss    §4.2 eq. 6-7  `loss_weights`
    5 Clip-Higher         §4.3 eq. 8    `policy_loss`
    6 Positive-example LM §4.3 eq. 9-10 `positive_example_loss`
    7 Group-Sampling      §4.3          `collect`, `Config.group_size`

What is left out of textbook PPO: entropy bonus, shared trunk, reward shaping, advantage whitening (a
switch), value clipping (a switch), KL to a reference policy (a switch). What the paper leaves open is
decided where it is used, in a comment that starts with "Choice:".

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
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minivapo.interfaces import (
    Engine,
    LossFn,
    Metrics,
    Outputs,
    Problem,
    Rollout,
    Task,
    UserError,
    World,
    derive_seed,
    join,
    make_rollout,
)
from minivapo.measure import Clock, describe, explained_variance, reduce_sums
from minivapo.responses import encode_prompt, judge, pad_id, response_text

# ---------------------------------------------------------------------------------------------------------
# Configuration
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, besides the task and the model. Defaults are VAPO at laptop size."""

    # The seven repairs: each ablation of the paper's Table 1 changes exactly one of these fields.
    value_pretrain_steps: int = 24
    """Repair 1: at most so many rollouts of value-pretraining; 0 turns it off (paper: 50)."""
    decoupled_gae: bool = True
    """Repair 2: the critic's targets use lam_critic; if False they use the policy's λ."""
    length_adaptive: bool = True
    """Repair 3: λ_policy = 1 − 1/(α l) for a response of l tokens; if False it is lam."""
    token_level_loss: bool = True
    """Repair 4: mean over all tokens of the mini-batch; if False, mean over samples of per-sample means."""
    clip_high: float = 0.28
    """Repair 5: the ratio is clipped to [1 − clip_low, 1 + clip_high]."""
    positive_coef: float = 0.1
    """Repair 6: weight μ of the LM loss on correct responses; 0 turns it off."""
    group_size: int = 8
    """Repair 7: responses for each prompt, at a fixed batch_size (paper: 16; 1 = no group sampling)."""

    # Advantages (§2 eq. 3, §4.1-4.2)
    advantage: Literal["gae", "group"] = "gae"
    """gae: from a critic. group: GRPO's outcome minus group mean over group deviation, without a critic."""
    gamma: float = 1.0
    """Discount per token; 1 throughout the paper."""
    lam: float = 0.95
    """Fixed λ of the policy's GAE, used when length_adaptive is off."""
    lam_critic: float = 1.0
    """λ of the critic's targets when decoupled_gae is on; 1 makes them Monte-Carlo returns."""
    alpha: float = 0.05
    """α of length-adaptive GAE: the horizon 1/(1 − λ) is α times the response length."""
    clip_low: float = 0.2
    """Lower clip of the ratio, ε_low."""
    whiten: bool = False
    """Scale advantages to mean 0 and deviation 1 over all tokens of the rollout."""

    # Reward
    reward_correct: float = 1.0
    """Reward of a correct response (on its last token)."""
    reward_wrong: float = 0.0
    """Reward of a wrong response; DAPO uses −1."""
    overlong_buffer: int = 0
    """DAPO's soft overlong penalty: falls linearly to −1 over the last so many tokens; 0 turns it off."""
    dynamic_sampling: int = 0
    """DAPO: replace groups that are all right or all wrong, in at most so many extra sampling rounds."""
    verifier_timeout: float = 300.0
    """Seconds that the task's verifier may take for one batch of responses; longer ends the run."""

    # Critic
    critic_init: str = "reward-model"
    """policy: the policy's weights; reward-model: those, then trained to score at the end; or a saved critic."""
    reward_model_steps: int = 8
    """Rollouts on which the reward model is trained, for critic_init=reward-model."""
    value_pretrain_patience: int = 6
    """Value-pretraining stops when explained variance has not risen for so many rollouts."""
    value_pretrain_batch: int = 0
    """Responses in a rollout of reward-model training and value-pretraining; 0 = batch_size."""
    value_pretrain_lr: float = 1e-3
    """Learning rate of reward-model training and value-pretraining."""
    value_clip: float = 0.0
    """Clip of the change of a value within an update, in reward units; 0 turns it off."""
    critic_epochs: int = 1
    """Passes of the critic over each rollout."""

    # Optimisation (§5.1)
    steps: int = 24
    """Rollouts to train for (5,000 gradient steps at 16 a rollout are ≈ 312 in the paper)."""
    batch_size: int = 256
    """Responses in one rollout, over all ranks (paper: 8192)."""
    mini_batch: int = 16
    """Responses in one gradient step, over all ranks (paper: 512, so 16 gradient steps a rollout)."""
    micro_batch: int = 16
    """Responses in one forward and backward pass of one rank; changes memory and speed, not the result."""
    epochs: int = 1
    """Passes of the actor over each rollout."""
    actor_lr: float = 1e-4
    """Learning rate of the actor (paper: 1e-6), constant after warm-up."""
    critic_lr: float = 2e-4
    """Learning rate of the critic (paper: 2e-6): twice the actor's, since it must keep up."""
    warmup: int = 16
    """Gradient steps over which both learning rates rise linearly."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; their norm before that is logged."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    kl_coef: float = 0.0
    """Weight of the KL penalty to the starting policy (k3 estimator); 0 needs no reference model."""
    importance_cap: float = 0.0
    """Cap of the weight π_learner/π_sampler that corrects for a sampler with other numerics; 0 = off."""

    # Sampling and evaluation
    max_new_tokens: int = 320
    """Length limit of a response, in tokens; reaching it means truncated, not terminated."""
    max_prompt_tokens: int = 512
    """A longer prompt is an error: tasks drop such prompts by a stated rule."""
    eval_problems: int = 512
    """Held-out problems of an evaluation."""
    eval_samples: int = 1
    """Responses for each held-out problem."""
    eval_every: int = 0
    """Evaluate every so many steps as well as at the start and the end; 0 = only there."""
    eval_temperature: float = 1.0
    """Sampling temperature of evaluations (paper: 1.0)."""
    eval_top_p: float = 0.7
    """Top-p of evaluations (paper: 0.7)."""
    seed: int = 0
    """Seeds everything: prompts, sampling, initial critic head."""

    def __post_init__(self) -> None:
        """Refuses values that cannot train."""

        def need(ok: bool, text: str) -> None:
            if not ok:
                raise UserError(text)

        for name in ("lam", "lam_critic", "gamma"):
            value = getattr(self, name)
            need(0 <= value <= 1, f"{name} is {value}; it must lie in [0, 1].")
        need(self.alpha > 0, f"alpha is {self.alpha}; it must be above 0 (the paper uses 0.05).")
        need(
            0 < self.clip_low < 1 and self.clip_high > 0,
            "clip_low must lie in (0, 1) and clip_high be above 0.",
        )
        need(self.group_size >= 1, f"group_size is {self.group_size}; it must be at least 1.")
        need(
            self.advantage == "gae" or self.group_size >= 2,
            f"group_size is {self.group_size}; group advantages (GRPO, DAPO) compare at least 2 responses.",
        )
        need(
            self.dynamic_sampling == 0 or self.group_size >= 2,
            "dynamic_sampling keeps groups of mixed verdicts: set group_size to 2 or more.",
        )
        need(
            self.batch_size % self.group_size == 0,
            f"batch_size {self.batch_size} is not a multiple of group_size {self.group_size}.",
        )
        need(
            0 < self.mini_batch <= self.batch_size and self.batch_size % self.mini_batch == 0,
            f"mini_batch is {self.mini_batch}; it must divide batch_size {self.batch_size}.",
        )
        need(
            self.value_pretrain_batch >= 0 and self.value_pretrain_batch % self.batch_size == 0,
            f"value_pretrain_batch is {self.value_pretrain_batch}; it must be 0 or a multiple of batch_size.",
        )
        counts = ("micro_batch", "epochs", "critic_epochs", "max_new_tokens", "eval_problems", "eval_samples")
        for name in counts:
            need(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1.")
        counts = ("steps", "value_pretrain_steps", "reward_model_steps", "warmup", "dynamic_sampling", "eval_every")
        for name in (*counts, "positive_coef", "kl_coef", "value_clip", "importance_cap", "weight_decay"):
            need(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; it must not be negative.")
        rates = ("actor_lr", "critic_lr", "value_pretrain_lr")
        for name in (*rates, "max_grad_norm", "eval_temperature", "verifier_timeout"):
            need(getattr(self, name) > 0, f"{name} is {getattr(self, name)}; it must be above 0.")
        need(0 < self.eval_top_p <= 1, f"eval_top_p is {self.eval_top_p}; it must lie in (0, 1].")
        need(self.reward_correct > self.reward_wrong, "reward_correct must be above reward_wrong.")
        need(0 <= self.overlong_buffer < self.max_new_tokens, "overlong_buffer must be below max_new_tokens.")

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
PRESETS: dict[str, Config] = {
    "vapo": VAPO,
    "ppo": PPO,
    "grpo": GRPO,
    "dapo": dataclasses.replace(GRPO, token_level_loss=True, clip_high=0.28, dynamic_sampling=3),
    "vapo-wo-value-pretraining": dataclasses.replace(VAPO, value_pretrain_steps=0),
    "vapo-wo-decoupled-gae": dataclasses.replace(VAPO, decoupled_gae=False),
    "vapo-wo-adaptive-gae": dataclasses.replace(VAPO, length_adaptive=False),
    "vapo-wo-clip-higher": dataclasses.replace(VAPO, clip_high=0.2),
    "vapo-wo-token-loss": dataclasses.replace(VAPO, token_level_loss=False),
    "vapo-wo-positive-loss": dataclasses.replace(VAPO, positive_coef=0.0),
    "vapo-wo-group-sampling": dataclasses.replace(VAPO, group_size=1),
}


# ---------------------------------------------------------------------------------------------------------
# The mathematics of the paper: pure functions
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
    """
    weights = mask.to(torch.get_default_dtype())
    return weights if token_level else weights / lengths.clamp(min=1)[:, None]


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
    ratio = torch.exp(torch.where(weights > 0, logprobs - old_logprobs, 0))
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    advantages = torch.where(weights > 0, advantages, 0)
    return -(weights * torch.min(ratio * advantages, clipped * advantages)).sum() / count


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
    mask = mask.bool()
    returns = torch.where(mask, returns, 0)
    error = (torch.where(mask, values, 0) - returns).square()
    if clip > 0 and old_values is not None:
        old = torch.where(mask, old_values, 0)
        near = old + (torch.where(mask, values, 0) - old).clamp(-clip, clip)
        error = torch.max(error, (near - returns).square())
    return 0.5 * error.sum() / count


def group_advantages(
    rewards: Float[Tensor, " batch"], judged: Bool[Tensor, " batch"], group_size: int
) -> Float[Tensor, " batch"]:
    """GRPO's outcome advantage: (R − mean)/(std + 1e-6) within each group of consecutive rows.

    Rows that the verifier failed on are left out of mean and deviation and get 0. Choice: the population
    deviation. A group of equal rewards gets 0 everywhere.
    """
    # float64: in float32 the mean of equal rewards can miss them by more than the 1e-6 below forgives.
    r, w = rewards.double().view(-1, group_size), judged.double().view(-1, group_size)
    n = w.sum(1, keepdim=True).clamp(min=1)
    mean = (r * w).sum(1, keepdim=True) / n
    std = (((r - mean).square() * w).sum(1, keepdim=True) / n).sqrt()
    return ((r - mean) / (std + 1e-6) * w).view(-1).to(rewards.dtype)


def overlong_penalty(lengths: Int[Tensor, " batch"], max_new_tokens: int, buffer: int) -> Float[Tensor, " batch"]:
    """DAPO's soft overlong penalty: 0 up to limit − buffer, then linear down to −1 at the limit."""
    if buffer == 0:
        return torch.zeros(len(lengths))
    return -((lengths - (max_new_tokens - buffer)) / buffer).clamp(0, 1)


# ---------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------


def train(config: Config, task: Task, engine: Engine) -> Iterator[Metrics]:
    """Trains the engine's actor, yielding metrics; the engine can be saved between any two of them.

    The first metrics are those of the base policy (step 0, `eval/…`), then one line for each rollout of
    reward-model training and value-pretraining (step 0, `pretrain/…`), then one line for each step.

    Raises:
        UserError: the configuration does not fit the number of ranks.
        NonFiniteError: a loss or gradient was not finite; the weights are those before that step.
    """
    world, progress = engine.world, engine.progress
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
    while progress.step < config.steps:
        metrics = train_step(config, task, engine)
        progress.step += 1
        periodic = config.eval_every and progress.step % config.eval_every == 0
        if progress.step == config.steps or periodic:
            metrics |= evaluate(config, task, engine)
        yield emit(metrics)


def train_step(config: Config, task: Task, engine: Engine) -> Metrics:
    """One rollout and its gradient steps."""
    clock = Clock()
    with clock("sample"):
        rollout = engine.balance(collect(config, task, engine, "train"), config.mini_batch)
    with clock("forward"):
        rollout.old_logprobs, rollout.entropy = map(engine.actor.forward(rollout).get, ("logprobs", "entropy"))
        if engine.critic is not None:
            rollout.values = engine.critic.forward(rollout)["values"]
        if engine.reference is not None:
            rollout.ref_logprobs = engine.reference.forward(rollout)["logprobs"]
    estimate_advantages(config, rollout, engine.world)
    metrics = describe(rollout, engine.world)
    with clock("update"):
        if engine.critic is not None:
            metrics |= update(config, rollout, engine, "critic", critic_loss, config.critic_epochs)
        metrics |= update(config, rollout, engine, "actor", actor_loss, config.epochs)
    with clock("sync"):
        engine.sampler.sync(engine.actor)
    engine.rollout = rollout
    seconds = clock.metrics()
    tokens_per_second = metrics["response/tokens"] / max(seconds["time/total"], 1e-9)
    return {
        **metrics,
        "samples": engine.progress.samples,
        **engine.metrics(),
        **seconds,
        "time/tokens_per_second": tokens_per_second,
    }


def collect(config: Config, task: Task, engine: Engine, stream: str) -> Rollout:
    """Samples this rank's share of a rollout: prompts × group_size, fewer prompts and more samples each
    (Group-Sampling, §4.3), and puts each verdict on the last token (§2: the reward is sparse).

    With dynamic sampling (DAPO), groups of equal verdicts are replaced; what is still missing after the
    last round is filled with them, so that the batch always has its size.
    """
    world, progress = engine.world, engine.progress
    kept: list[Rollout] = []
    spare: list[Rollout] = []
    wanted = config.prompts_per_step // world.size  # groups, on this rank
    for attempt in range(config.dynamic_sampling + 1):
        missing = torch.zeros(world.size, dtype=torch.long)
        missing[world.rank] = wanted - len(kept)
        missing = world.sum(missing)
        if not missing.any():
            break
        # Prompt i of this round goes to the ranks in turn, so that mini-batches do not depend on their number.
        owners = [r for j in range(int(missing.max())) for r in range(world.size) if j < missing[r]]
        numbers = [progress.prompts + i for i, r in enumerate(owners) if r == world.rank]
        problems = task.train_problems(progress.prompts, len(owners), config.seed)
        problems = [problems[i] for i, r in enumerate(owners) if r == world.rank]
        progress.prompts += len(owners)
        progress.samples += len(owners) * config.group_size
        if not problems:  # nothing to do here, but ranks that share a tensor-parallel sampler work together
            engine.sampler.generate([], config.group_size, 0, engine.actor.version)
            continue
        seed = derive_seed(config.seed, stream, numbers[0], attempt, world.rank)
        for group in sample_groups(config, task, engine, problems, numbers, seed):
            assert group.mixed is not None
            (kept if group.mixed.all() or config.dynamic_sampling == 0 else spare).append(group)
    rollout = join((kept + spare)[:wanted], pad_id(engine.tokenizer))
    rollout.number = row_numbers(config, world, progress.samples)
    return rollout


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


def sample_groups(
    config: Config, task: Task, engine: Engine, problems: list[Problem], numbers: list[int], seed: int
) -> list[Rollout]:
    """Samples and judges group_size responses for each problem; one rollout for each."""
    n = config.group_size
    prompts = [encode_prompt(engine.tokenizer, p.prompt, config.max_prompt_tokens) for p in problems]
    samples = engine.sampler.generate(prompts, n, seed, engine.actor.version)
    rows = [i for i in range(len(problems)) for _ in range(n)]
    texts = [response_text(engine.tokenizer, s) for s in samples]
    verdicts = judge(task, [problems[i] for i in rows], texts, config.verifier_timeout)
    rollout = make_rollout([prompts[i] for i in rows], samples, [numbers[i] for i in rows], pad_id(engine.tokenizer))
    rollout.correct = torch.tensor([v is True for v in verdicts])
    rollout.judged = torch.tensor([v is not None for v in verdicts])
    score = torch.where(rollout.correct, config.reward_correct, config.reward_wrong)
    score = score + overlong_penalty(rollout.lengths, config.max_new_tokens, config.overlong_buffer)
    rollout.mask &= rollout.judged[:, None]
    rollout.rewards[torch.arange(len(rows)), rollout.last] = score * rollout.judged
    rollout.outcome = group_advantages(rollout.rewards.sum(1), rollout.judged, n)
    right, wrong = rollout.correct.view(-1, n), (~rollout.correct & rollout.judged).view(-1, n)
    rollout.mixed = (right.any(1) & wrong.any(1)).repeat_interleave(n)
    groups = [rollout.rows(range(i * n, (i + 1) * n)) for i in range(len(problems))]
    for group, problem in zip(groups, problems, strict=True):
        group.problems = [problem] * n
    return groups


def estimate_advantages(config: Config, rollout: Rollout, world: World) -> None:
    """Fills in advantages, returns and λ_policy.

    Decoupled-GAE (§4.1): the critic's targets use λ_critic = 1, the policy's advantages their own λ, which
    follows the length of the response (§4.2, eq. 5).
    """
    mask = rollout.mask
    if config.advantage == "group":
        assert rollout.outcome is not None
        rollout.advantages = rollout.outcome[:, None] * mask
    else:
        assert rollout.values is not None
        lam = torch.full((len(rollout),), config.lam)
        if config.length_adaptive:
            lam = length_adaptive_lambda(rollout.lengths, config.alpha)
        lam_critic = config.lam_critic if config.decoupled_gae else lam
        rollout.lam = lam
        rollout.advantages = gae(rollout.rewards, rollout.values, mask, config.gamma, lam)
        targets = gae(rollout.rewards, rollout.values, mask, config.gamma, lam_critic)
        rollout.returns = torch.where(mask, targets + rollout.values, 0)
    if config.whiten:
        a = rollout.advantages.double()
        n, total, square = world.sum(torch.stack([mask.sum().double(), a.sum(), a.square().sum()])).tolist()
        mean = total / max(n, 1)
        std = math.sqrt(max(square / max(n, 1) - mean**2, 0.0))
        rollout.advantages = torch.where(mask, (rollout.advantages - mean) / (std + 1e-8), 0)


def actor_loss(config: Config, counts: Metrics) -> LossFn:
    """L = L_PPO + μ L_NLL (§4.3, eq. 9), and the KL penalty where it is on."""

    def loss_fn(outputs: Outputs, rows: Rollout) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        logprobs, old = outputs["logprobs"], rows.old_logprobs
        assert old is not None and rows.advantages is not None
        weights = loss_weights(rows.mask, rows.lengths, config.token_level_loss)
        if config.importance_cap > 0:
            weights = weights * torch.exp(old - rows.sampled_logprobs).clamp(max=config.importance_cap)
        count = counts["tokens"] if config.token_level_loss else counts["responses"]
        ppo = policy_loss(logprobs, old, rows.advantages, weights, count, config.clip_low, config.clip_high)
        positive = positive_example_loss(logprobs, rows.mask & rows.correct[:, None], counts["positive_tokens"])
        loss = ppo + config.positive_coef * positive
        sums = {"loss_policy": ppo.detach(), "loss_positive": positive.detach()}
        if rows.ref_logprobs is not None:
            gap = torch.where(rows.mask, rows.ref_logprobs - logprobs, 0)
            kl = ((gap.exp() - gap - 1) * weights).sum() / count
            loss = loss + config.kl_coef * kl
            sums["kl_reference"] = kl.detach()
        with torch.no_grad():
            log_ratio = torch.where(rows.mask, logprobs - old, 0)
            ratio = log_ratio.exp()
            sums["clip_low"] = ((ratio < 1 - config.clip_low) & (rows.advantages < 0)).sum() / counts["tokens"]
            sums["clip_high"] = ((ratio > 1 + config.clip_high) & (rows.advantages > 0)).sum() / counts["tokens"]
            sums["approx_kl"] = ((ratio - 1 - log_ratio) * rows.mask).sum() / counts["tokens"]
        sums["loss"] = loss.detach()
        return loss, sums, {"ratio_max": ratio.max(), "ratio_inverse_min": (-log_ratio).exp().max()}

    return loss_fn


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
        score = outputs["scores"].gather(1, rows.last[:, None])[:, 0]
        error = (score - rows.rewards.sum(1)).square() * rows.judged
        loss = 0.5 * error.sum() / counts["responses"]
        return loss, {"loss": loss.detach()}, {}

    return loss_fn


def update(
    config: Config,
    rollout: Rollout,
    engine: Engine,
    name: Literal["actor", "critic"],
    make_loss: Callable[[Config, Metrics], LossFn],
    epochs: int,
    constant_lr: float | None = None,
) -> Metrics:
    """One optimizer step for each mini-batch. Losses are divided by counts over all ranks, taken here once."""
    world, learner = engine.world, getattr(engine, name)
    mini_batch = rollout.number // config.mini_batch  # of each row; a rank may hold any number of a mini-batch's rows
    last = int(world.max(torch.tensor(max([0, *mini_batch.tolist()]))))
    peak = config.actor_lr if name == "actor" else config.critic_lr
    collected: list[tuple[Metrics, Metrics]] = []
    lr = 0.0
    for _ in range(epochs):
        for k in range(last + 1):
            rows = rollout.rows((mini_batch == k).nonzero()[:, 0])
            local = [rows.mask.sum(), rows.judged.sum(), (rows.mask & rows.correct[:, None]).sum()]
            total = world.sum(torch.stack(local).double()).tolist()
            # max(…, 1): a mini-batch that the verifier failed on entirely has no tokens, and no loss.
            names = ("tokens", "responses", "positive_tokens")
            counts = {k: n if k == "positive_tokens" else max(n, 1.0) for k, n in zip(names, total, strict=True)}
            lr = constant_lr or peak * min(1.0, (learner.version + 1) / max(config.warmup, 1))
            collected.append(learner.step(rows, make_loss(config, counts), lr))
    sums = reduce_sums(world, [s for s, _ in collected])
    maxima = {k: max(m[k] for _, m in collected) for k in collected[0][1]}
    peaks = world.max(torch.tensor(list(maxima.values()), dtype=torch.float64)).tolist()
    means = {f"{name}/{k}": v / len(collected) for k, v in sums.items()}
    grad_norm = sum(m["grad_norm"] for _, m in collected) / len(collected)
    return {
        **means,
        **{f"{name}/{k}": v for k, v in zip(maxima, peaks, strict=True) if k != "grad_norm"},
        f"{name}/grad_norm": grad_norm,
        f"{name}/lr": lr,
    }


def pretrain_critic(config: Config, task: Task, engine: Engine) -> Iterator[Metrics]:
    """Value-Pretraining (§4.1): samples of the *fixed* policy, regression on Monte-Carlo returns (λ = 1).

    For critic_init=reward-model the critic is first trained as one (§5.1's starting point). Explained
    variance is measured on each fresh rollout before the critic learns from it, and the phase ends when it
    has not risen for `value_pretrain_patience` rollouts. (§4.1 wants value loss low and explained variance
    high; the paper's sentence says both "low", a slip.)
    """
    progress = engine.progress
    # Choice: one response a prompt, since a critic learns more from many prompts than from many samples of few.
    batch = config.value_pretrain_batch or config.batch_size
    monte_carlo = dataclasses.replace(
        config,
        group_size=1,
        batch_size=batch,
        mini_batch=batch // (config.batch_size // config.mini_batch),  # as many updates a rollout as in training
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
        estimate_advantages(monte_carlo, rollout, engine.world)
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


def evaluate(config: Config, task: Task, engine: Engine) -> Metrics:
    """Mean pass rate over eval_samples responses to each held-out problem (§5.1: temperature 1, top-p 0.7)."""
    world = engine.world
    problems = task.test_problems(config.eval_problems)[world.rank :: world.size]
    prompts = [encode_prompt(engine.tokenizer, p.prompt, config.max_prompt_tokens) for p in problems]
    seed = derive_seed(config.seed, "eval", world.rank)
    samples = engine.sampler.generate(
        prompts, config.eval_samples, seed, engine.actor.version, config.eval_temperature, config.eval_top_p
    )
    rows = [p for p in problems for _ in range(config.eval_samples)]
    texts = [response_text(engine.tokenizer, s) for s in samples]
    verdicts = judge(task, rows, texts, config.verifier_timeout)
    totals = {
        "n": float(len(rows)),
        "accuracy": float(sum(v is True for v in verdicts)),
        "length": float(sum(len(s.tokens) for s in samples)),
        "truncated": float(sum(not s.terminated for s in samples)),
        "verifier_errors": float(sum(v is None for v in verdicts)),
    }
    totals = reduce_sums(world, [totals])
    return {f"eval/{k}": v / totals["n"] for k, v in totals.items() if k != "n"}
