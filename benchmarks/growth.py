"""How time and memory of the parts of a step grow with tokens and with responses, on one thread.

    python benchmarks/growth.py          # into benchmarks/growth.csv; a quarter of an hour

    gae         advantages of random rewards and values
    update      one optimizer step of a policy of two layers of 64, one response
    sample      responses of one length from the same policy
    vocabulary  the same update with 151,936 tokens, so that logits are what fills the memory; also with save_memory

Each measurement is a process of its own: processor seconds are the median of three after one, memory is the peak of the
process over what it had before.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tables

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks/growth.csv"
LONG = (64, 256, 1024, 4096, 16384, 32768)
PLAN: dict[str, list[tuple[int, int]]] = {  # part -> (responses, tokens of each)
    "gae": [*((16, n) for n in LONG), *((n, 256) for n in (64, 256, 1024, 4096))],
    "update": [*((1, n) for n in LONG), *((n, 64) for n in (4, 16, 64, 256))],
    "sample": [*((8, n) for n in (64, 256, 1024, 4096)), *((n, 64) for n in (32, 128, 512))],
    "vocabulary": [(1, n) for n in (256, 1024, 4096)],
    "vocabulary, save_memory": [(1, n) for n in (256, 1024, 4096)],
}


def work(part: str, responses: int, tokens: int) -> Callable[[], object]:
    """What is timed."""
    import torch
    import transformers

    from minivapo.interfaces import Sample, World, make_rollout
    from minivapo.local import LocalLearner, LocalSampler
    from minivapo.tasks import BASES
    from minivapo.vapo import Config, actor_loss, count_tokens, gae

    generator = torch.Generator().manual_seed(0)
    if part == "gae":
        rewards, values = (torch.randn(responses, tokens, generator=generator) for _ in range(2))
        mask = torch.ones(responses, tokens, dtype=torch.bool)
        return lambda: gae(rewards, values, mask, 1.0, torch.full((responses,), 0.95))
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASES / "locks")
    config = transformers.LlamaConfig(
        vocab_size=151_936 if part.startswith("vocabulary") else len(tokenizer), hidden_size=64, intermediate_size=256,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=2 * max(LONG),
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    learner = LocalLearner(
        transformers.LlamaForCausalLM(config), "actor", Config(micro_batch=16), save_memory="save" in part
    )
    prompt = [5, 6, 7, 8]
    if part == "sample":
        sampler = LocalSampler(tokenizer, tokens)
        sampler.sync(learner)
        sampler.ends = sampler.ends[:0]  # nothing ends a response but its length
        return lambda: sampler.generate([prompt], responses, seed=0, version=learner.version)
    samples = [
        Sample(torch.randint(5, len(tokenizer), (tokens,), generator=generator).tolist(), [-1.0] * tokens, True)
        for _ in range(responses)
    ]
    rollout = make_rollout([prompt] * responses, samples, list(range(responses)), 0)
    rollout.advantages, rollout.old_logprobs = rollout.mask.float(), rollout.sampled_logprobs
    counts = count_tokens(rollout, rollout, World())
    return lambda: learner.step(rollout, actor_loss(learner.config, counts), 1e-6)


def measure(part: str, responses: int, tokens: int) -> dict[str, float]:
    """Processor seconds and MiB of one call, in this process."""
    import torch

    torch.set_num_threads(1)
    seconds = []
    call = work(part, responses, tokens)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(4):
        begun = time.process_time()
        call()
        seconds.append(time.process_time() - begun)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"cpu_seconds": round(statistics.median(seconds[1:]), 6), "mib": round(peak, 1)}


def main() -> None:
    """Measures everything anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        part, responses, tokens = args.one
        print(json.dumps(measure(part, int(responses), int(tokens))))
        return

    from minivapo.runs.folder import git_commit, versions

    about = {"machine": platform.machine(), "torch": versions()["torch"], "commit": git_commit()}
    rows = []
    for part, sizes in PLAN.items():
        for responses, tokens in sizes:
            command = [sys.executable, __file__, "--one", part, str(responses), str(tokens)]
            done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"part": part, "responses": responses, "tokens": tokens, **found, **about})
            print(f"{part}, {responses} responses of {tokens} tokens: {found['cpu_seconds']} s", flush=True)
    tables.write(args.out, rows)


if __name__ == "__main__":
    main()
