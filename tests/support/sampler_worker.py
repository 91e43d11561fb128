"""On two ranks: vLLM against the learner whose weights it was given. Rank 0 writes findings.

sampler_worker.py OUT MODEL TENSOR_PARALLEL [bfloat16]
"""

import json
import sys
import types
from pathlib import Path

import torch
from toy import EOS, record_rollout, share, toy_config

from minivapo.interfaces import make_rollout
from minivapo.loading import load_actor
from minivapo.vapo import actor_loss, update
from scaled.config import Settings
from scaled.learner import DeepSpeedLearner
from scaled.sampler import SyncError, VllmSampler
from scaled.world import start

OUT, MODEL, TP = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
world = start(5)
config = toy_config("vapo", max_prompt_tokens=16, actor_lr=3e-2, warmup=1)
settings = Settings(
    dtype=sys.argv[4] if len(sys.argv) > 4 else "float32", tensor_parallel=TP, sampler_sequences=4,
    token_budget=100, activation_checkpointing=False,
)  # fmt: skip
found: dict = {}
before = torch.initial_seed()
sampler = VllmSampler(MODEL, config, settings, world, [EOS], stop=["w7"])
found["seed_kept"] = before == torch.initial_seed()
actor = DeepSpeedLearner(MODEL, "actor", config, settings, world)
prompts = [[3 + world.rank, 9, 12], [5, 6], [20, 21, 22, 23, 24 + world.rank]][: 3 - world.rank]


def gap(samples, n: int) -> float:
    """Largest difference of vLLM's log-probs from the learner's, over all ranks."""
    rows = [p for p in prompts for _ in range(n)]
    rollout = make_rollout(rows, samples, range(len(rows)), 0)
    logprobs = actor.forward(rollout)["logprobs"]
    worst = torch.where(rollout.mask, logprobs - rollout.sampled_logprobs, 0).abs().max()
    return float(world.max(worst))


def train() -> None:
    """One large step, so that old and new weights differ."""
    engine = type("E", (), {"world": world, "actor": actor})()
    rollout = share(record_rollout(config, actor.version), config, world.rank, world.size)
    update(config, rollout.rows(range(config.mini_batch // world.size)), engine, "actor", actor_loss, 1)


sampler.sync(actor)
samples = sampler.generate(prompts, 3, seed=1, version=0)
found["after_push"] = gap(samples, 3)
found["same_seed"] = samples == sampler.generate(prompts, 3, seed=1, version=0)
found["other_seed"] = samples == sampler.generate(prompts, 3, seed=2, version=0)
alone = sampler.generate(prompts[:1], 3, seed=1, version=0)
found["batch_invariant"] = [s.tokens for s in alone] == [s.tokens for s in samples[:3]]
found["different_samples"] = len({tuple(s.tokens) for s in samples[:3]})
greedy = sampler.generate(prompts, 1, seed=1, version=0, temperature=0.0)
found["greedy_same"] = greedy == sampler.generate(prompts, 1, seed=2, version=0, temperature=0.0)
plain = load_actor(MODEL)
for prompt, sample in zip(prompts, greedy, strict=True):
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([[*prompt, *sample.tokens]])).logits[0, len(prompt) - 1 : -1]
    found["greedy_best"] = found.get("greedy_best", True) and logits.argmax(-1).tolist() == sample.tokens
tempered = sampler.generate(prompts, 2, seed=3, version=0, temperature=0.7, top_p=0.6)
found["raw_logprobs"] = gap(tempered, 2)
shares: list[int] = []
complete = sampler.complete


def counted(requests, *rest):
    shares.append(len(requests))
    return complete(requests, *rest)


sampler.complete = counted
many = samples + sampler.generate(prompts, 40, seed=4, version=0)
ended = [s for s in many if s.terminated]
found["ended"] = len(ended)
found["ends_right"] = all(
    s.tokens[-1] in (EOS, 7) and EOS not in s.tokens[:-1] and 7 not in s.tokens[:-1] for s in ended
)
found["cut_right"] = all(len(s.tokens) == config.max_new_tokens for s in many if not s.terminated)
found["stop_string"] = sum(s.tokens[-1] == 7 for s in ended)
found["shares"] = torch.cat(world.gather(torch.tensor([len(prompts) * 40, shares[-1]])[None])).tolist()
empty = sampler.generate([] if world.rank else prompts, 1, seed=5, version=0)
found["empty"] = len(empty) == (0 if world.rank else 3)
found["metrics"] = sampler.metrics()
train()
stale = 0
try:
    sampler.generate(prompts, 1, seed=1, version=actor.version)
except RuntimeError:
    stale = 1
found["stale_refused"] = stale
found["without_push"] = gap(sampler.generate(prompts, 3, seed=1, version=0), 3)


def refusal(weights=None, push=None) -> str:
    """What a push says that goes wrong in one of these ways."""
    keep, sampler.llm.collective_rpc = sampler.llm.collective_rpc, push or sampler.llm.collective_rpc
    pushed = types.SimpleNamespace(version=actor.version, forward=actor.forward, weights=weights or actor.weights)
    try:
        sampler.sync(pushed)
        return ""
    except SyncError as error:
        return str(error)
    finally:
        sampler.llm.collective_rpc = keep


def flipped():
    """The weights, of which rank 1 has one bit of one element flipped."""
    for i, (name, x) in enumerate(actor.weights()):
        if i == 3 and world.rank == 1:
            x.view(torch.int16)[0, 0] ^= 1
        yield name, x


found["not_loaded"] = refusal(push=lambda _, kwargs: list(kwargs["weights_iterator"]))
found["flipped"] = refusal(weights=flipped)
sampler.sync(actor)
found["after_second_push"] = gap(sampler.generate(prompts, 3, seed=1, version=actor.version), 3)
if world.rank == 0:
    OUT.write_text(json.dumps(found, indent=1))
world.sum(torch.zeros(1))
sys.stdout.flush()
import os  # noqa: E402

os._exit(0)  # vLLM's threads do not always end with the interpreter
