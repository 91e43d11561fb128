"""Bytes on one GPU, by part and phase, as formulas.

ZeRO's partitions and buffers, activations, logits and caches: each is one function with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from scaled.planning.hardware import GIB
from scaled.planning.setup import Setup
from scaled.planning.shapes import Shape, layer_activation_bytes, layer_workspace_bytes, outer_activation_bytes

OFFLOADED = 20
"""Bytes per weight in CPU memory under offload: master weight, two moments, the summed gradient and its fp32 copy."""

# ---------------------------------------------------------------------------------------------------------
# A learner
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

    varlen and flash_attention_2 know the bounds of packed rows. sdpa takes a mask [tokens, tokens], turned into an
    additive one in each layer, and repeats keys and values for every head. eager holds the probabilities
    twice, for softmax (fp32) and for the product. Ulysses keeps the output before and after it is traded back,
    and keys and values once for each rank where there are fewer of their heads than ranks.
    """
    kernel, tokens, ranks = setup.attention, setup.micro_tokens, setup.job.settings.sequence_parallel
    if kernel in ("varlen", "flash_attention_2"):
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
    """What forward and backward of one micro-batch add at peak.

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
# The sampler
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
    """One GPU's memory at peak of a phase."""

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
    """Bytes of CPU memory of one machine, all pinned: offloaded optimizers, and vLLM's weights while it sleeps."""
    s = setup.job.settings
    here = min(s.ranks, s.ranks_per_node)
    total = OFFLOADED * sum(m.parameters for _, m in setup.learners) / s.ranks * here if s.offload_optimizer else 0.0
    total += sampler_weights(setup) * here if s.sampler_sleep else 0.0
    return total * setup.assume.pinned_rounding


def checkpoint_bytes(setup: Setup) -> float:
    """Bytes of a checkpoint: weights, Adam's two moments and, beside bfloat16 weights, the float32 ones."""
    return sum(m.parameters for _, m in setup.learners) * (2 + 4 + 8 if setup.width == 2 else 4 + 8)
