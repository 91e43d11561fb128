"""A model, a task and recorded rollouts small enough for many processes on two cores."""

import dataclasses
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from minivapo.interfaces import Problem, Rollout, Sample, World, make_rollout
from minivapo.vapo import (
    PRESETS,
    Config,
    actor_loss,
    critic_loss,
    estimate_advantages,
    group_advantages,
    reward_model_loss,
)

VOCABULARY = 64
EOS = 1


def make_model(folder: Path, tie: bool, family: str = "llama", seed: int = 0) -> Path:
    """A random-weight model of 60,000 parameters with sizes that 3 does not divide, and heads of 32 (vLLM on CPU).

    Llama where a tokenizer is needed: transformers opens every Qwen2 folder with a byte-level one.
    """
    torch.manual_seed(seed)
    make = {"llama": LlamaConfig, "qwen2": Qwen2Config}[family]
    config = make(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=tie, eos_token_id=EOS,
        bos_token_id=None, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    vocab = {"<pad>": 0, "<eos>": EOS, "<unk>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


class ToyTask:
    """The response is right if it holds an even number of tokens."""

    name = "toy"
    stop: tuple[str, ...] = ()

    def problem(self, i: int, seed: int | str) -> Problem:
        draw = random.Random(f"{seed}-{i}")
        return Problem(" ".join(f"w{draw.randrange(3, VOCABULARY)}" for _ in range(draw.randrange(2, 9))), "", str(i))

    def train_problems(self, start: int, count: int, seed: int) -> list[Problem]:
        return [self.problem(i, seed) for i in range(start, start + count)]

    def test_problems(self, count: int | None = None) -> list[Problem]:
        return [self.problem(i, "test") for i in range(count or 16)]

    def judge(self, problems, responses) -> list[bool | None]:
        return [len(r.split()) % 2 == 0 for r in responses]


def toy_config(preset: str, **changes) -> Config:
    """A preset at toy size."""
    base = {
        "batch_size": 12, "mini_batch": 6, "group_size": min(2, PRESETS[preset].group_size), "micro_batch": 4,
        "max_new_tokens": 40, "warmup": 2, "steps": 2, "actor_lr": 1e-3, "critic_lr": 2e-3, "value_pretrain_lr": 1e-3,
        "reward_model_steps": 1, "value_pretrain_steps": min(1, PRESETS[preset].value_pretrain_steps),
        "eval_problems": 6, "dynamic_sampling": min(1, PRESETS[preset].dynamic_sampling),
    }  # fmt: skip
    return dataclasses.replace(PRESETS[preset], **(base | changes))


def record_rollout(config: Config, seed: int, world: World | None = None) -> Rollout:
    """A rollout of random tokens in which everything that an update reads is filled in; ragged on purpose."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    prompts, samples = [], []
    for i in range(config.batch_size):
        if i % config.group_size == 0:
            prompt = [draw(3, VOCABULARY) for _ in range(draw(1, 9))]
        n = draw(1, config.max_new_tokens + 1)
        tokens = [draw(3, VOCABULARY) for _ in range(n - 1)] + [EOS]
        prompts.append(prompt)
        samples.append(Sample(tokens, [-float(draw(1, 100)) / 20 for _ in range(n)], terminated=i % 5 > 0))
    rollout = make_rollout(prompts, samples, [i // config.group_size for i in range(len(samples))], 0)
    rollout.correct = torch.rand(len(rollout), generator=generator) < 0.5
    rollout.judged[3] = False
    rollout.correct &= rollout.judged
    rollout.mask &= rollout.judged[:, None]
    rollout.rewards[torch.arange(len(rollout)), rollout.last] = rollout.correct.float()
    rollout.outcome = group_advantages(rollout.rewards.sum(1), rollout.judged, config.group_size)
    noise = torch.randn(rollout.tokens.shape, generator=generator)
    rollout.old_logprobs = torch.where(rollout.mask, -4 + 0.3 * noise, 0)
    rollout.ref_logprobs = torch.where(rollout.mask, -4 + 0.1 * noise, 0) if config.kl_coef else None
    rollout.entropy = torch.zeros_like(noise)
    rollout.values = torch.where(rollout.mask, 0.3 * noise, 0)
    rollout.number = torch.randperm(len(rollout), generator=generator)
    rollout.advantages, rollout.returns, rollout.lam = estimate_advantages(config, rollout)
    return rollout


def share(rollout: Rollout, config: Config, rank: int, size: int) -> Rollout:
    """The rows that belong to a rank, so that every mini-batch holds the same rows for any number of ranks."""
    rows = []
    for start in range(0, len(rollout), config.mini_batch):
        n = config.mini_batch // size
        rows += range(start + rank * n, start + (rank + 1) * n)
    return rollout.rows(rows)


LOSSES = {"actor": actor_loss, "critic": critic_loss, "reward-model": reward_model_loss}
