"""A reward model: the network that the paper's vanilla PPO starts its critic from (VAPO §3.1, §5.1).

It is trained on (response, verdict) pairs by the error of its score *after the last token* alone, so it never
learned what an unfinished response is worth: as a critic it carries the bias that value-pretraining removes.
The pairs are sampled from a policy and judged by a task, or read from a file.

    minivapo reward-model critic-init --task chain
    minivapo train --preset ppo --critic-init critic-init
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from minivapo.files import json_lines
from minivapo.interfaces import Engine, Metrics, Rollout, Sample, Task, UserError, make_rollout
from minivapo.responses import encode_prompt, pad_id
from minivapo.vapo import Config, collect, reward_model_loss, update


def sampled_pairs(config: Config, task: Task, engine: Engine) -> Iterator[Rollout]:
    """Rollouts of the policy as it stands, judged by the task; `reward_model_steps` of them."""
    engine.sampler.sync(engine.actor)
    for _ in range(config.reward_model_steps):
        yield collect(config, task, engine, "reward-model")


def pairs_from_file(path: Path, tokenizer: Any, config: Config) -> Iterator[Rollout]:
    """Rollouts of `batch_size` pairs from a .jsonl file, shuffled anew for each pass; `reward_model_steps` of them.

    Args:
        path: lines with `prompt` (text), `response` (text) and `correct` (true or false).
        tokenizer: of the policy. A response gets its EOS; one longer than max_new_tokens is cut and gets none.
        config: lengths, sizes, rewards and seed.

    Raises:
        UserError: a line cannot be read or lacks something, all verdicts are equal, or there are too few pairs.
    """
    prompts, samples, verdicts = [], [], []
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    for line in json_lines(path.read_bytes().splitlines(keepends=True)):
        where, record = f"{path}, line {line.number}", line.row or {}
        if not {"prompt", "response", "correct"} <= record.keys():
            raise UserError(f"{where}: needs a JSON object with the keys prompt, response and correct.")
        prompt, response, correct = record["prompt"], record["response"], record["correct"]
        if not (isinstance(prompt, str) and isinstance(response, str) and isinstance(correct, bool)):
            raise UserError(f"{where}: prompt and response must be texts, correct must be true or false.")
        ids = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        terminated = len(ids) <= config.max_new_tokens
        ids = ids[: config.max_new_tokens]
        prompts.append(encode_prompt(tokenizer, prompt, config.max_prompt_tokens))
        samples.append(Sample(ids, [0.0] * len(ids), terminated))
        verdicts.append(correct)
    if len(set(verdicts)) < 2:
        raise UserError(f"{path}: a reward model needs both right and wrong responses; there are only one kind.")
    size = min(config.batch_size, len(samples) // config.mini_batch * config.mini_batch)
    if size == 0:
        raise UserError(f"{path} holds {len(samples)} pairs, fewer than mini_batch {config.mini_batch}: lower it.")
    shuffle, order = random.Random(config.seed), list[int]()
    for _ in range(config.reward_model_steps):
        if len(order) < size:
            order = shuffle.sample(range(len(samples)), len(samples))
        rows, order = order[:size], order[size:]
        parts = [prompts[i] for i in rows], [samples[i] for i in rows], rows
        rollout = make_rollout(*parts, pad_id(tokenizer), [verdicts[i] for i in rows])
        scores = torch.where(rollout.correct, config.reward_correct, config.reward_wrong)
        rollout.rewards[torch.arange(size), rollout.last] = scores
        yield rollout


def train_reward_model(config: Config, engine: Engine, rollouts: Iterator[Rollout]) -> Iterator[Metrics]:
    """Trains the engine's critic to score finished responses; yields metrics for each rollout.

    `ranking` is measured before the model learns from the rollout: how often a right response scores above
    a wrong one (0.5 = chance; also called AUC).

    Raises:
        NonFiniteError: see `minivapo.vapo.train`.
    """
    assert engine.critic is not None
    for number, rollout in enumerate(rollouts, 1):
        scores = engine.critic.forward(rollout)["scores"].gather(1, rollout.last[:, None])[:, 0]
        right, wrong = scores[rollout.correct], scores[~rollout.correct & rollout.judged]
        above = (right[:, None] > wrong).double() + 0.5 * (right[:, None] == wrong).double()
        loss = update(config, rollout, engine, "critic", reward_model_loss, 1, config.value_pretrain_lr)
        yield {
            "rollout": number,
            "loss": loss["critic/loss"],
            "ranking": float(above.mean()) if above.numel() else 0.5,
            "correct": float(rollout.correct.double().mean()),
        }


def save_reward_model(engine: Any, folder: Path, record: dict[str, Any]) -> None:
    """Writes a transformers folder that `--critic-init` takes, its tokenizer, and how it was made."""
    engine.critic.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
    (folder / "reward_model.json").write_text(json.dumps(record, indent=1))
