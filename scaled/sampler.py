"""vLLM in process, behind `minivapo.interfaces.Sampler`: one engine for each rank or tensor-parallel group.

How long a batch waits for its longest response: all requests of an engine are submitted at once, and
continuous batching refills a slot as soon as its response ends. So an engine needs max(longest response,
all tokens / slots) decode steps and no more; no batch waits for another. What is left is lost at the end,
when slots run empty, and between engines: both shares are logged.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minivapo.interfaces import Learner, Metrics, Sample, UserError, derive_seed, make_rollout
from minivapo.vapo import Config
from scaled.config import Settings
from scaled.faults import tick
from scaled.world import ON_GPU, DistributedWorld

PROBE = 64
"""Tokens on which sampler and learner are compared after every push."""

GAP = {"float32": 0.005, "bfloat16": 0.5}
"""Mean difference of their log-probs, in nats, that rounding explains: about 1e-6 and 1e-2 are usual."""


class SyncError(RuntimeError):
    """vLLM does not sample from the learner's weights."""


@dataclass(frozen=True)
class Request:
    """A response that is asked for."""

    rank: int
    """Who asked."""
    prompt: list[int]
    seed: int


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
        self.engine, self.place = divmod(world.rank, settings.tensor_parallel)
        self.llm = make_llm(model, config, settings, world.size)
        longest = config.max_prompt_tokens + config.max_new_tokens
        self.probe_ids = probe_tokens(self.llm.model_config.get_vocab_size(), longest)
        self.rest()

    def sync(self, actor: Learner) -> None:
        """Pushes the actor's weights, gathered piecewise, and forgets prefixes cached under the old ones.

        Raises:
            SyncError: a rank pushed other weights than the rest, or vLLM does not compute what the learner does.
        """
        tick("before the push of weights")
        expected = probe_logprobs(actor, self.probe_ids)  # while vLLM still sleeps
        self.wake("weights")
        pushed = Fingerprint()
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": pushed.of(actor.weights())})
        if not ON_GPU:
            self.llm.apply_model(repack_head)
        self.llm.reset_prefix_cache()
        self.version = actor.version
        self.check(pushed, expected)

    def check(self, pushed: Fingerprint, expected: Tensor) -> None:
        """Compares what the ranks pushed, bit for bit, and vLLM's log-probs on a fixed probe with the learner's."""
        prints = torch.cat(self.world.gather(pushed.total[None]))
        usual = prints == prints.mode().values
        if not usual.all():
            odd, even = int((~usual).int().argmax()), int(usual.int().argmax())
            raise SyncError(f"rank {odd} pushed other weights to vLLM than rank {even} (version {self.version})")
        self.wake("kv_cache")
        gap = (self.probe() - expected).abs().mean()
        gaps = torch.cat(self.world.gather(gap[None]))
        limit = GAP[self.settings.dtype]
        wrong = (~(gaps <= limit)).nonzero()[:, 0].tolist()
        if wrong:
            raise SyncError(
                f"after the push of version {self.version}, vLLM's log-probs on rank {wrong[0]} are "
                f"{gaps[wrong[0]]:.3g} nats from the learner's on a fixed probe (at most {limit}): it does not hold "
                "the learner's weights, or computes another model"
            )

    def probe(self) -> Tensor:
        """vLLM's log-probs of the probe's tokens but the first, in nats."""
        from vllm import SamplingParams, TokensPrompt

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        tokens = self.probe_ids
        [output] = self.llm.generate([TokensPrompt(prompt_token_ids=tokens)], parameters, use_tqdm=False)
        steps = output.prompt_logprobs[1:]
        return torch.tensor([step[token].logprob for step, token in zip(steps, tokens[1:], strict=True)])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        version: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[Sample]:
        """See `minivapo.interfaces.Sampler.generate`; every response has its own seed, whatever it is batched with.

        The responses of all ranks are dealt evenly over the engines, however the prompts lie on the ranks.
        """
        if version != self.version:
            raise RuntimeError(f"the sampler holds weights of version {self.version}, not {version}: call sync first")
        shares: list[Any] = [None] * self.world.size
        dist.all_gather_object(shares, ([list(p) for p in prompts], n, seed))
        requests = [
            Request(rank, prompt, derive_seed(share_seed, i, j))
            for rank, (share_prompts, count, share_seed) in enumerate(shares)
            for i, prompt in enumerate(share_prompts)
            for j in range(count)
        ]
        bounds = even_cut(len(requests), self.world.size // self.settings.tensor_parallel)
        mine = slice(bounds[self.engine], bounds[self.engine + 1])
        tick("sampling")
        self.wake("weights", "kv_cache")
        start = time.perf_counter()
        outputs = self.complete(requests[mine], temperature, top_p)
        self.account(time.perf_counter() - start, [len(s.tokens) for s in outputs])
        tick("after sampling")
        self.rest()
        homes = [request.rank // self.settings.tensor_parallel for request in requests]
        stay = all(set(homes[a:b]) <= {e} for e, (a, b) in enumerate(itertools.pairwise(bounds)))
        here = [request.rank for request in requests[mine]]
        if stay:  # so it is in training, where every rank has as many prompts
            return [sample for sample, rank in zip(outputs, here, strict=True) if rank == self.world.rank]
        sent = outputs if self.place == 0 else []
        return send_home(sent, here[: len(sent)], self.world)

    def complete(self, requests: Sequence[Request], temperature: float, top_p: float) -> list[Sample]:
        """One response for each request, all submitted at once."""
        from vllm import SamplingParams, TokensPrompt

        if not requests:
            return []
        parameters = [
            SamplingParams(
                n=1,
                temperature=temperature,
                top_p=top_p,
                seed=request.seed,
                max_tokens=self.max_new_tokens,
                logprobs=0,  # of the sampled token, untempered and untruncated ("raw_logprobs")
                flat_logprobs=True,  # without an object for every token
                stop=self.stop,
                include_stop_str_in_output=True,
                stop_token_ids=self.ends,
                detokenize=bool(self.stop),
            )
            for request in requests
        ]
        # The samples of one prompt stand together: all but the first find its prefix in the cache.
        inputs = [TokensPrompt(prompt_token_ids=request.prompt) for request in requests]
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
    flat, tokens = completion.logprobs, list(completion.token_ids)
    logprobs = [flat.logprobs[i] for i in flat.start_indices[: len(tokens)]]
    if [flat.token_ids[i] for i in flat.start_indices[: len(tokens)]] != tokens:
        raise RuntimeError("vLLM's log-probs are not those of the tokens that it sampled")
    return Sample(tokens, logprobs, terminated=completion.finish_reason == "stop")


def even_cut(count: int, parts: int) -> list[int]:
    """Where so many things are cut into parts that differ by one at most, and the end."""
    return [count * i // parts for i in range(parts + 1)]


def send_home(samples: Sequence[Sample], ranks: Sequence[int], world: DistributedWorld) -> list[Sample]:
    """Sends each sample to its rank, in the order of the engines that drew them; returns this rank's. Collective."""
    parts = []
    for rank in range(world.size):
        own = [sample for sample, home in zip(samples, ranks, strict=True) if home == rank]
        parts.append({
            "lengths": torch.tensor([len(s.tokens) for s in own], dtype=torch.long),
            "terminated": torch.tensor([s.terminated for s in own], dtype=torch.bool),
            "tokens": torch.tensor([t for s in own for t in s.tokens], dtype=torch.long),
            "logprobs": torch.tensor([x for s in own for x in s.logprobs], dtype=torch.float64),
        })  # fmt: skip
    found = []
    for part in world.exchange(parts):
        lengths = part["lengths"].tolist()
        columns = zip(part["tokens"].split(lengths), part["logprobs"].split(lengths), part["terminated"], strict=True)
        found += [Sample(tokens.tolist(), logprobs.tolist(), bool(ended)) for tokens, logprobs, ended in columns]
    return found


class Fingerprint:
    """An integer over the bits of tensors and their names, the same wherever they are computed."""

    def __init__(self) -> None:
        self.total = torch.zeros((), dtype=torch.long)

    def of(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights, counted as they pass."""
        for name, x in weights:
            bits = x.detach().contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32}[x.element_size()])
            # Sums of integers wrap around and depend on no order; the name and the halves tell tensors apart.
            halves = torch.stack([half.sum(dtype=torch.long) for half in bits.flatten().tensor_split(2)]).cpu()
            key = derive_seed("fingerprint", name) >> 16
            self.total = self.total * 31 + halves[0] * key + halves[1] * (key + 2)
            yield name, x


def probe_tokens(vocabulary: int, longest: int) -> list[int]:
    """Token ids of the probe: any will do, as long as they are always the same."""
    draw = random.Random(0)
    return [draw.randrange(vocabulary) for _ in range(min(PROBE, longest - 1))]


def probe_logprobs(actor: Learner, tokens: Sequence[int]) -> Tensor:
    """The learner's log-probs of the probe's tokens but the first, in nats. Collective."""
    sample = Sample(list(tokens[1:]), [0.0] * (len(tokens) - 1), False)
    return actor.forward(make_rollout([tokens[:1]], [sample], [0], 0))["logprobs"][0, 1:]


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
