"""What a scaled run costs: bytes on a GPU by part and phase, and seconds, as formulas.

Memory: parameters are counted on the meta device; ZeRO's partitions and buffers, activations, logits and
caches are formulas, each in one function with its reason. Times: FLOPs, bytes moved and bytes sent, over
what the hardware's data sheet promises times an efficiency that `Assumptions` states.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from minivapo.interfaces import UserError
from scaled.config import Job
from scaled.layers.packing import balance, cut, imbalance
from scaled.planning.shapes import (
    Shape,
    forward_flops,
    layer_activation_bytes,
    layer_workspace_bytes,
    outer_activation_bytes,
)

GIB = 2**30
OFFLOADED = 20
"""Bytes a weight in CPU memory under offload: master weight, two moments, the summed gradient and its fp32 copy."""

# ---------------------------------------------------------------------------------------------------------
# Hardware and assumptions
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU and the machine around it."""

    name: str
    memory: float
    """Bytes that a process can allocate: what torch reports as total capacity."""
    flops: float
    """Dense bf16 FLOP/s with fp32 accumulation, data sheet."""
    bandwidth: float
    """Bytes/s of its memory, data sheet."""
    link: float
    """Bytes/s to the other GPUs of the machine, one direction."""
    network: float
    """Bytes/s of one machine to the others, one direction, all adapters together."""
    host_link: float
    """Bytes/s between GPU and CPU memory, one direction."""
    host_memory: float
    """Bytes of CPU memory of one machine."""
    host_bandwidth: float
    """Bytes/s of a machine's CPU memory, as a CPU Adam reaches it."""


# FLOP/s, bandwidth, NVLink: NVIDIA's data sheets "A100 80GB SXM", "H100 SXM" (sparse figures halved) and
# "H200 SXM"; the Ada white paper for the RTX 4080 and 4090 (bf16 with fp32 accumulation). Capacity: what
# torch prints in out-of-memory errors on these cards. Network and CPU memory: DGX A100 (8 × 200 Gb/s),
# DGX H100 and H200 (8 × 400 Gb/s), 2 TB each; a workstation with 64 GB and 10 Gb/s Ethernet for the
# consumer cards, which have no NVLink and reach each other through the CPU over PCIe 4.
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-80", 79.15 * GIB, 312e12, 2.04e12, 300e9, 200e9, 25e9, 2000e9, 200e9),
        Gpu("h100-80", 79.11 * GIB, 989e12, 3.35e12, 450e9, 400e9, 50e9, 2000e9, 300e9),
        Gpu("h200-141", 139.8 * GIB, 989e12, 4.8e12, 450e9, 400e9, 50e9, 2000e9, 300e9),
        Gpu("rtx4080-16", 15.6 * GIB, 97.5e12, 0.717e12, 10e9, 1.25e9, 20e9, 64e9, 40e9),
        Gpu("rtx4090-24", 23.6 * GIB, 165e12, 1.008e12, 10e9, 1.25e9, 20e9, 64e9, 40e9),
    )
}


@dataclass(frozen=True)
class Assumptions:
    """What cannot be known before the run. Each is a choice; measure and override: `--response-share 0.4`."""

    learner_efficiency: float = 0.40
    """Share of peak FLOP/s in forward and backward passes, recomputation counted as work (Llama 3's
    pre-training, arXiv 2407.21783 table 4, reports 38-43 % on H100)."""
    sampler_efficiency: float = 0.50
    """Share of peak FLOP/s of prefill and of large decode batches."""
    sampler_bandwidth: float = 0.60
    """Share of peak memory bandwidth while decoding."""
    network_efficiency: float = 0.75
    """Share of link speed that NCCL's collectives reach (large messages: ~85-95 %; ZeRO's are smaller)."""
    overlap: float = 0.50
    """Share of ZeRO's communication that hides behind computing."""
    decode_overhead: float = 4e-3
    """Seconds of scheduling and kernel launches for one decoded token of a batch."""
    allreduce_latency: float = 15e-6
    """Seconds of one all-reduce of a tensor-parallel group; two for each layer and token."""
    prompt_tokens: int = 200
    """Mean prompt, in tokens."""
    response_share: float = 0.25
    """Mean response as a share of max_new_tokens; lengths follow an exponential cut at the limit."""
    dynamic_rounds: float = 0.5
    """Share of the extra sampling rounds that dynamic sampling really needs."""
    flash_attention: bool = True
    """Whether attention=auto will find the flash-attn package; else it is sdpa with a mask."""
    switch_seconds: float = 5.0
    """Seconds to put vLLM to sleep and wake it again."""
    fixed_gib: float = 2.0
    """GiB of CUDA context, NCCL channels, cuBLAS workspaces and kernels of the learner."""
    fragmentation: float = 0.05
    """What the allocator loses, as a share of the learner's tensors."""
    sampler_fixed_gib: float = 2.5
    """GiB of vLLM beside weights and KV cache: CUDA graphs, activations, sampling buffers."""
    sampler_asleep_gib: float = 1.0
    """GiB that vLLM keeps while it sleeps (graphs, communicators)."""
    bucket_elements: float = 5e8
    """DeepSpeed's reduce_bucket_size, in elements."""
    live_elements: float = 1.05e9
    """Gathered by ZeRO-3 at once: DeepSpeed's stage3_max_live_parameters + stage3_prefetch_bucket_size."""
    sub_group_elements: float = 1e9
    """DeepSpeed's sub_group_size: elements updated at once."""
    push_elements: float = 2**28
    """Elements gathered at once on their way to vLLM: `scaled.learner.GATHER`."""

    def __post_init__(self) -> None:
        """Refuses what is no efficiency or no share."""
        shares = ("learner_efficiency", "sampler_efficiency", "sampler_bandwidth", "network_efficiency")
        for name in (*shares, "response_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must lie in (0, 1].")
        if not 0 <= self.overlap <= 1 or self.prompt_tokens < 1:
            raise UserError("overlap must lie in [0, 1], prompt_tokens be at least 1.")


@dataclass(frozen=True)
class Setup:
    """Everything that the formulas read."""

    job: Job
    actor: Shape
    critic: Shape | None
    gpu: Gpu
    assume: Assumptions

    @property
    def width(self) -> int:
        """Bytes of a weight, gradient or activation."""
        return 2 if self.job.settings.dtype == "bfloat16" else 4

    @property
    def attention(self) -> str:
        """The attention kernel, see `scaled.learner.attention_name`; ulysses where ranks share rows."""
        if self.job.settings.sequence_parallel > 1:
            return "ulysses"
        name = self.job.settings.attention
        return name if name != "auto" else "flash_attention_2" if self.assume.flash_attention else "sdpa"

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that may occur."""
        return self.job.config.max_prompt_tokens + self.job.config.max_new_tokens

    @property
    def longest_share(self) -> int:
        """Tokens of it on one rank."""
        return -(-self.longest // self.job.settings.sequence_parallel)

    @property
    def micro_tokens(self) -> int:
        """Tokens of the largest micro-batch on a rank: a longer sequence than the budget has one of its own."""
        return max(self.job.settings.token_budget, self.longest_share)

    @property
    def learners(self) -> list[tuple[str, Shape]]:
        """The networks that are trained, in the order of their updates."""
        return [("critic", self.critic), ("actor", self.actor)] if self.critic else [("actor", self.actor)]


# ---------------------------------------------------------------------------------------------------------
# Memory of a learner
# ---------------------------------------------------------------------------------------------------------

Memory = dict[tuple[str, str], float]
"""(owner, part) -> bytes on one GPU at one moment."""


def resident(setup: Setup, owner: str, shape: Shape) -> Memory:
    """What a DeepSpeed learner holds at all times.

    Weights: 2 bytes each in bf16 (4 in fp32), on every rank under ZeRO-2, 1/ranks of them under ZeRO-3.
    Optimizer: fp32 master weight and Adam's two moments, 12 bytes, 1/ranks of them (DeepSpeed keeps a
    master copy even for fp32 weights). ZeRO-3 also keeps one reduction bucket and its gradient partition,
    both in fp32 (`grad_accum_dtype` and `communication_data_type` of `scaled.learner`).
    """
    s, n = setup.job.settings, shape.parameters
    share = n / s.ranks
    parts = {"weights": setup.width * (share if s.zero_stage == 3 else n)}
    if not s.offload_optimizer:
        parts["optimizer"] = 12 * share
    if s.zero_stage == 3:
        parts["buffers"] = 4 * setup.assume.bucket_elements
        if not s.offload_optimizer:
            parts["gradients"] = 4 * share
    return {(owner, part): x for part, x in parts.items()}


def gathered(setup: Setup, shape: Shape) -> float:
    """Bytes of other ranks' weights that ZeRO-3 holds during a pass: the live window, and what oversteps it.

    DeepSpeed looks at its limit before it gathers the next weights, not after; and weights that were gathered
    together lie there twice while they are taken apart.
    """
    if setup.job.settings.zero_stage < 3:
        return 0.0
    twice = min(shape.largest_piece, shape.parameters)
    return setup.width * (min(setup.assume.live_elements + shape.largest_piece, shape.parameters) + twice)


def reduction(setup: Setup, shape: Shape) -> float:
    """Bytes in passing while gradients are summed over ranks.

    ZeRO-3 joins a bucket's gradients in fp32; a gradient larger than the bucket (a large embedding) stands
    beside its fp32 copy instead. ZeRO-2 fills two buckets in turn and sums one in fp32, which for fp32 weights
    is no copy.
    """
    a, n = setup.assume, shape.parameters
    large = max((x for x in (shape.embedding_parameters, shape.head_parameters) if x > a.bucket_elements), default=0)
    joined = max(4 * min(a.bucket_elements, n), (setup.width + 4) * large)
    if setup.job.settings.zero_stage == 3:
        return joined
    return 2 * setup.width * a.bucket_elements + (joined if setup.width == 2 else 0)


def attention_extra(setup: Setup, shape: Shape) -> float:
    """Bytes that attention keeps for backward in one layer beyond the fused kernel's.

    flash_attention_2 knows the bounds of packed rows. sdpa takes a mask [tokens, tokens], turned into an
    additive one in each layer, and repeats keys and values for every head. eager holds the probabilities
    twice, for softmax (fp32) and for the product. Ulysses keeps the output before and after it is traded back,
    and keys and values once for each rank where there are fewer of their heads than ranks.
    """
    kernel, tokens, ranks = setup.attention, setup.micro_tokens, setup.job.settings.sequence_parallel
    if kernel == "flash_attention_2":
        return 0.0
    if kernel == "ulysses":
        heads = shape.heads + 2 * max(ranks - shape.kv_heads, 0)
        return float(heads * shape.head_dim * tokens * setup.width)
    repeated = 2 * (shape.heads - shape.kv_heads) * shape.head_dim * tokens * setup.width
    matrix = shape.heads * (4 + (2 if setup.width == 2 else 0)) if kernel == "eager" else setup.width
    return float(repeated + matrix * tokens**2)


def stream(setup: Setup, shape: Shape) -> float:
    """Bytes of the residual stream of the largest micro-batch."""
    return float(setup.micro_tokens * shape.hidden * setup.width)


def logits(setup: Setup, shape: Shape) -> float:
    """Bytes of one chunk of logits: three fp32 tensors of [chunk, vocabulary] at once, forward and backward."""
    return 12.0 * min(setup.job.settings.logits_chunk, setup.micro_tokens) * shape.vocab if shape.vocab > 1 else 0.0


def forward_memory(setup: Setup, owner: str, shape: Shape) -> Memory:
    """What a pass without gradient adds: the widest layer, or else the logits."""
    tokens = setup.micro_tokens
    mask = tokens**2 if setup.attention == "sdpa" else 0
    attention = attention_extra(setup, shape) + 6 * stream(setup, shape)
    layer = mask + max(layer_workspace_bytes(shape, tokens, setup.width, False), attention)
    memory = {(owner, "buffers"): gathered(setup, shape)}
    if layer > stream(setup, shape) + logits(setup, shape):
        return memory | {(owner, "activations"): layer}
    return memory | {(owner, "activations"): stream(setup, shape), (owner, "logits"): logits(setup, shape)}


def backward_memory(setup: Setup, owner: str, shape: Shape) -> Memory:
    """What forward and backward of one micro-batch add at the worst moment.

    Head: everything kept for backward, and the head's gradient summed in fp32, with a chunk's logits or its
    share of that gradient. Layer: the last layer, recomputed under checkpointing, its gradients, and the
    reduction; a tied head's gradient waits for the embedding's. Under checkpointing the stream is kept once for
    each layer, else all of every layer. End, under ZeRO-2: all gradients, and no activations.
    """
    s, tokens, width = setup.job.settings, setup.micro_tokens, setup.width
    one = layer_activation_bytes(shape, tokens, width) + attention_extra(setup, shape)
    kept = shape.layers * (stream(setup, shape) if s.activation_checkpointing else one)
    kept += tokens**2 if setup.attention == "sdpa" else 0
    window = gathered(setup, shape)
    outer = outer_activation_bytes(shape, tokens, width) + stream(setup, shape)
    chunk = logits(setup, shape)
    # The chunk's share of the gradient is made when only one fp32 tensor of the chunk and its gradient are left.
    head = shape.head_parameters if shape.vocab > 1 else 0
    gradient = max(4 * head, (4 + width) * head - chunk * (8 - width) / 12)
    layer = (one if s.activation_checkpointing else 0) + layer_workspace_bytes(shape, tokens, width, True)
    at_head = {"activations": kept + outer, "logits": chunk, "gradients": gradient, "buffers": window}
    at_layer = {"activations": kept + layer, "buffers": window + reduction(setup, shape)}
    if shape.tied:
        at_layer["gradients"] = float(width * shape.head_parameters)
    if s.zero_stage == 2:
        at_head["buffers"] += 2 * width * setup.assume.bucket_elements
    moments = [at_head, at_layer]
    if s.zero_stage == 2 and not s.offload_optimizer:
        for moment in moments:  # what earlier micro-batches left
            moment["gradients"] = moment.get("gradients", 0) + 4 * shape.parameters / s.ranks
        moments.append({"gradients": partition(setup, shape), "buffers": reduction(setup, shape)})
    parts = max(moments, key=lambda moment: sum(moment.values()))
    return {(owner, part): x for part, x in parts.items()}


def partition(setup: Setup, shape: Shape) -> float:
    """Bytes of ZeRO-2's gradient partition while it exists.

    For bf16 weights DeepSpeed sums into one flat fp32 buffer, which the optimizer then reads. For fp32 weights
    it keeps the sum and the newest micro-batch's gradients, and flattens a copy for the optimizer.
    """
    return (4 if setup.width == 2 else 8) * shape.parameters / setup.job.settings.ranks


def step_memory(setup: Setup, owner: str, shape: Shape) -> Memory:
    """What the optimizer's step adds: its own copy of the gradient partition, and ZeRO-2's all-gather."""
    s, share = setup.job.settings, shape.parameters / setup.job.settings.ranks
    memory: Memory = {}
    if not s.offload_optimizer:
        copy = 4 * min(share, setup.assume.sub_group_elements)
        memory[owner, "gradients"] = partition(setup, shape) if s.zero_stage == 2 else copy
    if s.zero_stage == 2:  # the last bucket's fp32 sum is still held; later, one of new weights travels
        held = 4 if setup.width == 2 else 0
        memory[owner, "buffers"] = held * min(setup.assume.bucket_elements, shape.parameters)
    return memory


# ---------------------------------------------------------------------------------------------------------
# Memory of the sampler
# ---------------------------------------------------------------------------------------------------------


def sampler_weights(setup: Setup) -> float:
    """Bytes of vLLM's weights on one GPU of a tensor-parallel group."""
    return setup.width * setup.actor.parameters / setup.job.settings.tensor_parallel


def kv_token_bytes(setup: Setup) -> float:
    """Bytes of KV cache for one token on one GPU; heads are split over the group, never less than one each."""
    tp = setup.job.settings.tensor_parallel
    return setup.width * setup.actor.kv_elements * max(1 / tp, 1 / setup.actor.kv_heads)


def sampler_memory(setup: Setup) -> Memory:
    """vLLM awake. It fills its share of the GPU: what weights and buffers leave becomes KV cache."""
    return {
        ("vllm", "weights"): sampler_weights(setup),
        ("vllm", "fixed"): setup.assume.sampler_fixed_gib * GIB,
        ("vllm", "KV cache"): max(kv_pool(setup), kv_token_bytes(setup) * setup.longest),
    }


def kv_pool(setup: Setup) -> float:
    """Bytes of KV cache on one GPU; negative if weights alone exceed vLLM's share."""
    fixed = setup.assume.sampler_fixed_gib * GIB
    return setup.job.settings.sampler_memory * setup.gpu.memory - sampler_weights(setup) - fixed


# ---------------------------------------------------------------------------------------------------------
# Phases
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """One GPU's memory at the worst moment of a phase."""

    name: str
    parts: dict[tuple[str, str], float]
    """(owner, part) -> bytes."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


def add(*parts: Memory) -> Memory:
    """Sum by owner and part."""
    result: Memory = {}
    for part in parts:
        for key, x in part.items():
            result[key] = result.get(key, 0.0) + x
    return result


def phases(setup: Setup) -> list[Phase]:
    """The phases of one step in order (sample → forward → critic update → actor update → sync)."""
    s = setup.job.settings
    base = add(*(resident(setup, owner, shape) for owner, shape in setup.learners))
    if setup.job.config.kl_coef > 0:
        n = setup.actor.parameters / (s.ranks if s.zero_stage == 3 else 1)
        base = add(base, {("reference", "weights"): setup.width * n})
    awake = sampler_memory(setup)
    asleep = {("vllm", "fixed"): setup.assume.sampler_asleep_gib * GIB} if s.sampler_sleep else awake
    worst_forward = max(
        (forward_memory(setup, o, m) for o, m in setup.learners), key=lambda memory: sum(memory.values())
    )
    moments: list[tuple[str, Memory, Memory]] = [("sample", awake, {}), ("forward", asleep, worst_forward)]
    for owner, shape in setup.learners:
        moments.append((f"{owner} backward", asleep, backward_memory(setup, owner, shape)))
        moments.append((f"{owner} step", asleep, step_memory(setup, owner, shape)))
    # Weights travel in pieces, gathered and copied. The KV cache is taken again after the push where vLLM sleeps.
    piece = min(max(setup.assume.push_elements, setup.actor.largest_piece), setup.actor.parameters)
    push = {("actor", "buffers"): setup.width * piece * (2 if s.zero_stage == 3 else 1)}
    loaded = {k: x for k, x in awake.items() if not (s.sampler_sleep and k[1] == "KV cache")}
    moments.append(("sync", loaded, push))
    return [Phase(name, overhead(setup, add(base, extra), sampler)) for name, sampler, extra in moments]


def overhead(setup: Setup, learner: Memory, sampler: Memory) -> Memory:
    """Adds what no tensor accounts for."""
    lost = setup.assume.fragmentation * sum(learner.values())
    return add(learner, sampler, {("gpu", "fixed"): setup.assume.fixed_gib * GIB, ("gpu", "fragmentation"): lost})


def host_memory(setup: Setup) -> float:
    """Bytes of CPU memory of one machine: offloaded optimizers, and vLLM's weights while it sleeps."""
    s = setup.job.settings
    here = min(s.ranks, s.ranks_per_node)
    total = OFFLOADED * sum(m.parameters for _, m in setup.learners) / s.ranks * here if s.offload_optimizer else 0.0
    return total + (sampler_weights(setup) * here if s.sampler_sleep else 0.0)


# ---------------------------------------------------------------------------------------------------------
# Time
# ---------------------------------------------------------------------------------------------------------


def response_lengths(limit: int, share: float, count: int) -> list[int]:
    """`count` response lengths in tokens: quantiles of an exponential cut at the limit, in a fixed shuffle.

    Mean of min(Exp(τ), limit) = τ (1 − e^(−limit/τ)) = share · limit is solved for τ by bisection.
    """
    if share > 0.99:
        return [limit] * count
    low, high = 1e-3, 1e3  # τ as a share of the limit
    for _ in range(100):
        mid = math.sqrt(low * high)
        low, high = (mid, high) if mid * -math.expm1(-1 / mid) < share else (low, mid)
    lengths = [max(1, min(limit, round(-low * limit * math.log1p(-(i + 0.5) / count)))) for i in range(count)]
    step = max(1, round(count * 0.618))
    while math.gcd(step, count) > 1:
        step += 1
    return [lengths[i * step % count] for i in range(count)]


@dataclass(frozen=True)
class Load:
    """The tokens of one rollout, over all ranks."""

    responses: int
    prompts: int
    tokens: float
    """Σ s, prompt and response."""
    response_tokens: float
    squares: float
    """Σ s², for attention."""


def load(setup: Setup, responses: int, group: int) -> Load:
    """What so many responses amount to."""
    p = setup.assume.prompt_tokens
    lengths = response_lengths(setup.job.config.max_new_tokens, setup.assume.response_share, 512)
    mean = sum(lengths) / len(lengths)
    squares = sum((p + x) ** 2 for x in lengths) / len(lengths)
    return Load(responses, -(-responses // group), responses * (p + mean), responses * mean, responses * squares)


@dataclass(frozen=True)
class Sampling:
    """How long vLLM takes for one rollout."""

    seconds: float
    slots: int
    """Responses that one engine works on at once: what fits the KV cache, at most sampler_sequences."""
    idle: float
    """Share of these slots that stand empty while the longest responses finish."""


def sampling(setup: Setup, work: Load) -> Sampling:
    """Prefill, then continuous batching simulated from completion to completion.

    A decoded token of a batch reads all weights and the KV cache of the batch, or does its FLOPs, whichever
    takes longer, plus a fixed overhead. A group shares the prefill of its prompt.
    """
    s, a, gpu = setup.job.settings, setup.assume, setup.gpu
    engines = max(s.ranks // s.tensor_parallel, 1)
    count = -(-work.responses // engines)
    lengths = response_lengths(setup.job.config.max_new_tokens, a.response_share, count)
    mean = sum(lengths) / count
    # A response in flight is on average as long as a length-biased one half-way.
    context = a.prompt_tokens + sum(x * x for x in lengths) / count / mean / 2
    fits = int(max(kv_pool(setup), 0.0) / kv_token_bytes(setup) / context)
    slots = max(1, min(s.sampler_sequences, fits, count))
    latency = a.decode_overhead + (2 * setup.actor.layers * a.allreduce_latency if s.tensor_parallel > 1 else 0)
    flops = 2.0 * setup.actor.matmul_parameters / s.tensor_parallel / (gpu.flops * a.sampler_efficiency)
    read = 1 / (gpu.bandwidth * a.sampler_bandwidth)

    def decode(active: int) -> float:
        traffic = (sampler_weights(setup) + active * context * kv_token_bytes(setup)) * read
        return max(traffic, active * flops) + latency

    waiting, running = lengths[slots:][::-1], lengths[:slots]
    heapq.heapify(running)
    now, seconds = 0, 0.0
    while running:
        end, active = heapq.heappop(running), len(running) + 1
        seconds += (end - now) * decode(active)
        now = end
        if waiting:
            heapq.heappush(running, now + waiting.pop())
    prefill = work.prompts / engines * a.prompt_tokens * flops
    return Sampling(prefill + seconds, slots, 1 - sum(lengths) / (now * slots))


def collective_seconds(setup: Setup, size: float) -> float:
    """Seconds of an all-gather or reduce-scatter of `size` bytes: size · (r − 1)/r over the bus bandwidth.

    A ring crosses from machine to machine once for each adapter, so the bus is the slower of a GPU's link
    and a machine's whole network.
    """
    s = setup.job.settings
    if s.ranks == 1:
        return 0.0
    bus = setup.gpu.link if s.ranks <= s.ranks_per_node else min(setup.gpu.link, setup.gpu.network)
    return size * (s.ranks - 1) / s.ranks / (bus * setup.assume.network_efficiency)


def dealt(setup: Setup, shape: Shape, responses: int) -> tuple[int, float]:
    """Micro-batches of the rank that has most, and the slowest rank over the mean: dealt as the learner deals."""
    s, limit = setup.job.settings, setup.job.config.max_new_tokens
    lengths = response_lengths(limit, setup.assume.response_share, responses)
    totals = [setup.assume.prompt_tokens + x for x in lengths]
    costs = [forward_flops(shape, x, x * x) for x in totals]
    groups = s.ranks // s.sequence_parallel
    owner = balance(costs, groups)
    parts: list[list[int]] = [[] for _ in range(groups)]
    for total, group in zip(totals, owner, strict=True):
        parts[group].append(total)
    budget = s.token_budget * s.sequence_parallel
    return max(len(cut(part, budget)) for part in parts), imbalance(costs, owner, groups)


def pass_flops(setup: Setup, shape: Shape, work: Load, backward: bool) -> float:
    """FLOPs of passes over a rollout, on all ranks.

    A backward pass is two forward passes, and one more where layers are recomputed, up to the last tensor that
    they had to keep: without the last product. Logits are always computed anew, chunk by chunk.
    """
    # A mask keeps the attention kernel from skipping what it masks: the whole square of the micro-batch.
    masked = setup.attention in ("sdpa", "eager")
    squares = 2 * work.tokens * setup.micro_tokens if masked else work.squares
    forward = forward_flops(shape, work.tokens, squares)
    if not backward:
        return forward
    head = 2.0 * shape.head_parameters * work.tokens
    again = head if shape.vocab > 1 else 0.0
    if setup.job.settings.activation_checkpointing:
        last = 2.0 * shape.layers * shape.hidden * shape.intermediate * work.tokens
        again += forward - head - last
    return 3 * forward + again


def trade_seconds(setup: Setup, shape: Shape, tokens: float, passes: int) -> float:
    """Seconds in which Ulysses trades queries, keys, values and outputs, with `tokens` over all ranks."""
    s = setup.job.settings
    if s.sequence_parallel == 1:
        return 0.0
    heads = 2 * shape.heads + 2 * max(shape.kv_heads, s.sequence_parallel)
    sent = shape.layers * heads * shape.head_dim * setup.width * tokens / s.ranks
    bus = setup.gpu.link if s.sequence_parallel <= s.ranks_per_node else min(setup.gpu.link, setup.gpu.network)
    leaving = (s.sequence_parallel - 1) / s.sequence_parallel
    return passes * sent * leaving / (bus * setup.assume.network_efficiency)


def pass_seconds(setup: Setup, shape: Shape, work: Load, backward: bool) -> float:
    """Seconds of passes over a rollout, on the slowest rank.

    ZeRO-3 gathers all weights for a forward pass and again for a backward one, and scatters gradients; ZeRO-2
    scatters gradients alone.
    """
    s, a, c = setup.job.settings, setup.assume, setup.job.config
    steps = c.batch_size // c.mini_batch if backward else 1
    count, unequal = dealt(setup, shape, work.responses // steps)
    flops = pass_flops(setup, shape, work, backward)
    compute = flops / s.ranks / (setup.gpu.flops * a.learner_efficiency) * unequal
    passes = 1 if not backward else 3 if s.activation_checkpointing else 2
    compute += trade_seconds(setup, shape, work.tokens, passes) * unequal
    gathers = (2 if backward else 1) if s.zero_stage == 3 else 0
    moved = shape.parameters * (gathers * setup.width + (4 if backward else 0))
    wires = steps * count * collective_seconds(setup, moved)
    return compute + max(wires * (1 - a.overlap), wires - compute)


def optimizer_seconds(setup: Setup, shape: Shape) -> float:
    """Seconds of one optimizer step: Adam reads and writes 30 bytes a weight; ZeRO-2 gathers the new weights."""
    s = setup.job.settings
    share = shape.parameters / s.ranks
    if s.offload_optimizer:
        ranks_here = min(s.ranks, s.ranks_per_node)
        seconds = 30 * share * ranks_here / setup.gpu.host_bandwidth + 2 * setup.width * share / setup.gpu.host_link
    else:
        seconds = 30 * share / (setup.gpu.bandwidth * setup.assume.sampler_bandwidth)
    gather = collective_seconds(setup, setup.width * shape.parameters) if s.zero_stage == 2 else 0.0
    return seconds + gather


def times(setup: Setup) -> dict[str, float]:
    """Seconds of each phase of one step."""
    c = setup.job.config
    work = load(setup, c.batch_size, c.group_size)
    rounds = 1 + setup.assume.dynamic_rounds * c.dynamic_sampling
    steps = c.batch_size / c.mini_batch
    result = {"sample": rounds * sampling(setup, work).seconds}
    forward = sum(pass_seconds(setup, shape, work, False) for _, shape in setup.learners)
    result["forward"] = forward + (pass_seconds(setup, setup.actor, work, False) if c.kl_coef > 0 else 0.0)
    for owner, shape in setup.learners:
        one = pass_seconds(setup, shape, work, True) + steps * optimizer_seconds(setup, shape)
        result[f"{owner} update"] = one * (c.epochs if owner == "actor" else c.critic_epochs)
    result["sync"] = collective_seconds(setup, setup.width * setup.actor.parameters) + setup.assume.switch_seconds
    return result


def whole_run(setup: Setup, step: dict[str, float]) -> dict[str, float]:
    """Seconds of the run by what they are spent on: pretraining of the critic, steps, evaluations."""
    c = setup.job.config
    result = {"steps": c.steps * sum(step.values())}
    if setup.critic:
        rollouts = c.value_pretrain_steps + (c.reward_model_steps if c.critic_init == "reward-model" else 0)
        one = sampling(setup, load(setup, c.batch_size, c.group_size)).seconds + step["critic update"]
        one += pass_seconds(setup, setup.critic, load(setup, c.batch_size, c.group_size), False)
        result["value-pretraining"] = rollouts * one
    evaluations = 1 + (c.steps // c.eval_every if c.eval_every else 0) + (1 if c.steps else 0)
    tested = load(setup, c.eval_problems * c.eval_samples, c.eval_samples)
    result["evaluations"] = evaluations * sampling(setup, tested).seconds
    return result
