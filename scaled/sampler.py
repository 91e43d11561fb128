"""vLLM in process, behind `minivapo.interfaces.Sampler`: one engine for each rank or tensor-parallel group.

How long a batch waits for its longest response: all requests of an engine are submitted at once, and
continuous batching refills a slot as soon as its response ends. So an engine needs max(longest response,
all tokens / slots) decode steps and no more; no batch waits for another. What is left is lost at the end,
when slots run empty, and between engines: both shares are logged.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minivapo.interfaces import Learner, Metrics, Sample, UserError, derive_seed
from minivapo.vapo import Config
from scaled.config import Settings
from scaled.faults import tick
from scaled.world import ON_GPU, DistributedWorld


class VllmSampler:
    """Samples from weights that `sync` pushed, see `minivapo.interfaces.Sampler`. Every method is collective.

    Args:
        model: transformers folder or hub name; its config and tokenizer are read, its weights are not.
        config: max_prompt_tokens and max_new_tokens are read.
        settings: how to run.
        world: the ranks.
        ends: token ids that end a response.
        stop: strings that end a response.
    """

    def __init__(
        self,
        model: str | Path,
        config: Config,
        settings: Settings,
        world: DistributedWorld,
        ends: Sequence[int],
        stop: Sequence[str] = (),
    ) -> None:
        self.config, self.settings, self.world = config, settings, world
        self.ends, self.stop = list(ends), list(stop)
        self.max_new_tokens = config.max_new_tokens
        self.version = -1
        self.asleep: set[str] = set()
        self.busy = self.waited = self.tokens = self.slots = 0.0
        first = world.rank - world.rank % settings.tensor_parallel
        groups = [
            dist.new_group(list(range(start, start + settings.tensor_parallel)), backend="gloo")
            for start in range(0, world.size, settings.tensor_parallel)
        ]
        self.group, self.place = groups[first // settings.tensor_parallel], world.rank - first
        self.llm = make_llm(model, config, settings, world.size)
        self.rest()

    def sync(self, actor: Learner) -> None:
        """Pushes the actor's weights, gathered piecewise."""
        self.push(actor.weights(), actor.version)

    def push(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Takes these weights, by their names in a checkpoint, and forgets prefixes cached under the old ones."""
        self.wake("weights")
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if not ON_GPU:
            self.llm.apply_model(repack_head)
        self.llm.reset_prefix_cache()
        self.version = version

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        version: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[Sample]:
        """See `minivapo.interfaces.Sampler.generate`; every response has its own seed, whatever it is batched with."""
        if version != self.version:
            raise RuntimeError(f"the sampler holds weights of version {self.version}, not {version}: call sync first")
        # Ranks that share an engine work on the prompts of all of them, in one order.
        shares: list[Any] = [None] * self.settings.tensor_parallel
        dist.all_gather_object(shares, ([list(p) for p in prompts], seed), group=self.group)
        requests = [
            (prompt, derive_seed(share_seed, i, j))
            for share_prompts, share_seed in shares
            for i, prompt in enumerate(share_prompts)
            for j in range(n)
        ]
        tick("sampling")
        self.wake("weights", "kv_cache")
        start = time.perf_counter()
        outputs = self.complete(requests, temperature, top_p)
        self.account(time.perf_counter() - start, [len(s.tokens) for s in outputs])
        tick("after sampling")
        self.rest()
        before = sum(len(share_prompts) for share_prompts, _ in shares[: self.place]) * n
        return outputs[before : before + len(prompts) * n]

    def complete(self, requests: Sequence[tuple[list[int], int]], temperature: float, top_p: float) -> list[Sample]:
        """One response for each (prompt, seed), all submitted at once."""
        from vllm import SamplingParams, TokensPrompt

        if not requests:
            return []
        parameters = [
            SamplingParams(
                n=1,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                max_tokens=self.config.max_new_tokens,
                logprobs=0,  # of the sampled token, untempered and untruncated ("raw_logprobs")
                stop=self.stop,
                include_stop_str_in_output=True,
                stop_token_ids=self.ends,
                detokenize=bool(self.stop),
            )
            for _, seed in requests
        ]
        # The samples of one prompt stand together: all but the first find its prefix in the cache.
        inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in requests]
        return [to_sample(output.outputs[0]) for output in self.llm.generate(inputs, parameters, use_tqdm=False)]

    def account(self, seconds: float, lengths: Sequence[int]) -> None:
        """Books what was lost to stragglers: seconds that ranks wait for the last, and empty decode slots."""
        every = torch.cat(self.world.gather(torch.tensor([seconds], dtype=torch.float64)))
        self.busy += float(every.sum())
        self.waited += float((every.max() - every).sum())
        slots = min(self.settings.sampler_sequences, max(len(lengths), 1))
        mine = torch.tensor([float(sum(lengths)), float(slots * drain_steps(lengths, slots))], dtype=torch.float64)
        tokens, capacity = self.world.sum(mine).tolist()
        self.tokens, self.slots = self.tokens + tokens, self.slots + capacity

    def metrics(self) -> Metrics:
        """Shares lost to stragglers since the last call, over all ranks."""
        found = {
            "time/straggler_share": self.waited / max(self.busy + self.waited, 1e-9),
            "time/empty_slots": 1 - self.tokens / max(self.slots, 1.0),
        }
        self.busy = self.waited = self.tokens = self.slots = 0.0
        return found

    def wake(self, *parts: str) -> None:
        """Takes back GPU memory for weights or KV cache."""
        parts = tuple(part for part in parts if part in self.asleep)
        if parts:
            self.llm.wake_up(tags=list(parts))
            self.asleep -= set(parts)

    def rest(self) -> None:
        """Gives GPU memory back to the learners; there is no such thing on the CPU."""
        if ON_GPU and self.settings.sampler_sleep:
            self.llm.sleep(level=1)
            self.asleep = {"weights", "kv_cache"}


def make_llm(model: str | Path, config: Config, settings: Settings, ranks: int) -> Any:
    """A vLLM engine in this process.

    Raises:
        UserError: the model is too short for the responses asked for.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # external_launcher and in-process pushes need it
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if not ON_GPU:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        torch._dynamo.config.disable = True  # small helpers of vLLM would be compiled for a minute
    from vllm import LLM

    if not ON_GPU and settings.tensor_parallel > 1:
        from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

        # Trap: under external_launcher its shared memory has one name for all jobs of a machine, and a job that was
        # killed leaves it behind: every later job fails. Without it the ranks speak over gloo.
        CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False

    length = config.max_prompt_tokens + config.max_new_tokens
    with torch.random.fork_rng(devices=[]):
        try:
            return LLM(
                model=str(model),
                load_format="dummy",  # `sync` brings the weights
                dtype=settings.dtype,
                max_model_len=length,
                max_num_seqs=settings.sampler_sequences,
                tensor_parallel_size=settings.tensor_parallel,
                distributed_executor_backend="external_launcher" if ranks > 1 else "uni",
                gpu_memory_utilization=settings.sampler_memory,
                enforce_eager=not ON_GPU,
                enable_sleep_mode=ON_GPU and settings.sampler_sleep,
                enable_prefix_caching=True,
                generation_config="vllm",  # not the sampling defaults of the model's folder
                disable_log_stats=True,
                seed=0,  # responses have seeds of their own
            )
        except ValueError as error:
            text = " ".join(str(error).split())
            if "max_model_len" in text or "max_position_embeddings" in text:
                raise UserError(
                    f"max_prompt_tokens + max_new_tokens is {length}, more than {model} can take: {text[:200]}"
                ) from error
            raise


def to_sample(completion: Any) -> Sample:
    """A vLLM completion as the loop wants it; the length limit is the only end that is not `terminated`."""
    tokens = list(completion.token_ids)
    logprobs = [step[token].logprob for step, token in zip(completion.logprobs, tokens, strict=True)]
    return Sample(tokens, logprobs, terminated=completion.finish_reason == "stop")


def repack_head(model: Any) -> None:
    """Trap of vLLM's CPU build: with tied embeddings it keeps a stale packed lm_head after a push, silently."""
    method = getattr(getattr(model, "lm_head", None), "quant_method", None)
    if method is not None:
        method.process_weights_after_loading(model.lm_head)


def drain_steps(lengths: Sequence[int], slots: int) -> int:
    """Decode steps that so many slots need for responses of these lengths, refilled in order as they end."""
    ends = [0] * slots
    for length in lengths:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return max(ends)
