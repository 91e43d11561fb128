"""Holds the plan against measurement and states its error; one long file, so that all checks write one table.

    python benchmarks/plan_check.py                  # everything that needs no GPU, a few minutes on 2 cores
    python benchmarks/plan_check.py --device cuda    # the learner's phases on one GPU, real shapes: not run

Without a GPU:
    parameters   counted on the meta device, against the published sizes
    saved        bytes that one layer keeps for backward, against torch's saved-tensor hooks
    peak         live bytes of forward and backward at real shapes, on fake tensors: torch runs every
                 operation without data, and each storage is counted from birth to death
    flops        a bare model against torch.utils.flop_counter
    learner      FLOPs of `scaled.learner` itself, packing, recomputation and logits included, against that counter
    deepspeed    `scaled.learner` for real at small size, ZeRO-2 and ZeRO-3, 1 and 2 ranks: bytes of its weights,
                 optimizer and gradients, of all its tensors at rest, and the peak of live bytes in each phase
    vllm         `scaled.sampler` for real, alone and in a tensor-parallel group: bytes of its KV cache for each
                 token that it has room for (its weights cannot be counted: the CPU build repacks them)

    python benchmarks/plan_check.py --docs           # writes the generated parts of docs/plan-32b.md

With --device cuda, `deepspeed` reads torch.cuda.max_memory_allocated instead. Errors are (plan − measured) /
measured: positive means that the plan asks for more than is needed. Writes plan_check.csv and .json.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import dataclasses
import gc
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import unittest.mock
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from minivapo.loading import recompute_activations
from scaled.config import Job, Settings, make_job, read_job
from scaled.layers.head import CriticModule, PolicyModule
from scaled.planning import memory
from scaled.planning.advice import Plan, plan
from scaled.planning.command import duration, markdown
from scaled.planning.hardware import gib, this_gpu
from scaled.planning.memory import (
    OFFLOADED,
    add,
    backward_memory,
    forward_memory,
    kv_token_bytes,
    resident,
    step_memory,
)
from scaled.planning.setup import Assumptions, Setup, make_setup
from scaled.planning.shapes import Shape, count, forward_flops, layer_activation_bytes, model_config, shape_of
from scaled.planning.time import Load, pass_flops

Row = dict[str, Any]
CHECKS = ("parameters", "saved", "peak", "flops", "learner", "deepspeed", "vllm")
HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "plan-32b.md"
PUBLISHED = {  # model cards of Qwen/Qwen2.5-<size>, in billions
    "Qwen2.5-0.5B": 0.49, "Qwen2.5-1.5B": 1.54, "Qwen2.5-3B": 3.09, "Qwen2.5-7B": 7.61, "Qwen2.5-14B": 14.7,
    "Qwen2.5-32B": 32.5,
}  # fmt: skip
SMALL = transformers.Qwen2Config(
    hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2, intermediate_size=688,
    vocab_size=4096, tie_word_embeddings=False, max_position_embeddings=4096,
)  # fmt: skip


def row(check: str, case: str, planned: float, measured: float, unit: str) -> Row:
    """One line of the result."""
    error = (planned - measured) / measured if measured else float(planned != measured)
    return {"check": check, "case": case, "unit": unit, "planned": planned, "measured": measured, "error": error}


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages from birth to death, those that are alive at the start included."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0
        for t in tensors_alive():
            self.born(t.untyped_storage())
        self.start = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_iter(out):
            if isinstance(t, torch.Tensor) and t.device.type != "meta":
                self.born(t.untyped_storage())
        return out

    def born(self, storage: Any) -> None:
        """Notes a storage, unless it is known."""
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.died, key)

    def died(self, key: int) -> None:
        """Forgets it."""
        self.live -= self.sizes.pop(key, 0)


def tensors_alive() -> list[torch.Tensor]:
    """Every tensor with memory that Python can reach."""
    gc.collect()
    return [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.device.type != "meta"]


def bytes_alive() -> int:
    """Bytes of their storages, each once."""
    return storage_bytes(tensors_alive())


def check_parameters() -> Iterator[Row]:
    """Counted against published; the model cards round."""
    for name, billions in PUBLISHED.items():
        yield row("parameters", name, shape_of(name).parameters, billions * 1e9, "weights")


def check_saved() -> Iterator[Row]:
    """One layer's saved tensors, weights not counted."""
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        for tokens in (256, 1024):
            shape = count(copy.deepcopy(SMALL))
            model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(SMALL), dtype=dtype)
            weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
            inside: list[int] = []
            middle = model.model.layers[2]
            middle.register_forward_pre_hook(lambda *_: inside.append(1))  # noqa: B023
            middle.register_forward_hook(lambda *_: inside.clear())  # noqa: B023
            seen: dict[int, int] = {}
            kept: list[torch.Tensor] = []

            def note(t: torch.Tensor) -> torch.Tensor:
                storage = t.untyped_storage()
                if storage.data_ptr() not in weights | set(seen):  # noqa: B023
                    kept.append(t)  # noqa: B023  an address must not be used again
                    seen[storage.data_ptr()] = storage.nbytes() if inside else 0  # noqa: B023
                return t

            with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
                model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
            planned = layer_activation_bytes(shape, tokens, width)
            yield row("saved", f"layer, {tokens} tokens, {dtype}", planned, sum(seen.values()), "bytes")


def check_flops() -> Iterator[Row]:
    """Forward and backward; eager attention is counted on the whole square, the plan counts half of it."""
    shape = count(copy.deepcopy(SMALL))
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(SMALL), attn_implementation="eager")
    for tokens in (256, 1024):
        ids = torch.zeros(1, tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as forward:
            logits = model(input_ids=ids, use_cache=False).logits
        with FlopCounterMode(display=False) as backward:
            logits.sum().backward()
        planned = forward_flops(shape, tokens, 2 * tokens**2)
        yield row("flops", f"forward, {tokens} tokens", planned, forward.get_total_flops(), "FLOPs")
        yield row("flops", f"backward, {tokens} tokens", 2 * planned, backward.get_total_flops(), "FLOPs")


def job_for(model: str, **settings: Any) -> Job:
    """A job of one mini-batch, for the formulas."""
    base = {
        "model": model, "task": "gsm8k", "batch_size": 16, "group_size": 4, "mini_batch": 16,
        "max_prompt_tokens": 64, "max_new_tokens": 192,
    }  # fmt: skip
    return make_job(base | settings)


def check_peak() -> Iterator[Row]:
    """Real shapes on fake tensors: what the plan adds for a pass, without buffers of ZeRO."""
    cases = [
        ("Qwen2.5-0.5B", "actor", torch.bfloat16, 16384, True, "flash_attention_2"),
        ("Qwen2.5-0.5B", "critic", torch.bfloat16, 16384, False, "flash_attention_2"),
        ("Qwen2.5-0.5B", "actor", torch.bfloat16, 8192, True, "sdpa"),
        ("Qwen2.5-0.5B", "critic", torch.bfloat16, 8192, False, "sdpa"),
        ("Qwen2.5-1.5B", "actor", torch.float32, 4096, True, "flash_attention_2"),
        ("Qwen2.5-3B", "actor", torch.bfloat16, 16384, True, "flash_attention_2"),
        ("Qwen2.5-7B", "actor", torch.bfloat16, 16384, True, "flash_attention_2"),
        ("Qwen2.5-7B", "critic", torch.bfloat16, 16384, True, "flash_attention_2"),
        ("Qwen2.5-32B", "actor", torch.bfloat16, 22528, True, "flash_attention_2"),
        ("Qwen2.5-32B", "critic", torch.bfloat16, 22528, True, "flash_attention_2"),
    ]
    for model, kind, dtype, tokens, checkpointing, attention in cases:
        job = job_for(
            model, token_budget=tokens, activation_checkpointing=checkpointing, attention=attention,
            dtype=str(dtype).removeprefix("torch."), zero_stage=3,
        )  # fmt: skip
        setup = make_setup(job)
        shape = setup.actor if kind == "actor" else setup.critic
        assert shape is not None
        words = f"{model} {kind}, {tokens} tokens, {dtype}, {'' if checkpointing else 'no '}checkpointing, {attention}"
        with unittest.mock.patch.object(memory, "reduction", return_value=0.0):  # there are no ranks here
            passes = {"forward": forward_memory(setup, kind, shape)}
            passes["backward"] = backward_memory(setup, kind, shape)
        for what, planned_parts in passes.items():
            planned = sum(x for (_, part), x in planned_parts.items() if part != "buffers")
            yield row("peak", f"{what}: {words}", planned, fake_peak(job, kind, dtype, what == "backward"), "bytes")


def fake_peak(job: Job, kind: str, dtype: torch.dtype, backward: bool) -> int:
    """Live bytes of a pass over one packed micro-batch; gradients leave as soon as they are complete, as in ZeRO."""
    s, config = job.settings, copy.deepcopy(model_config(job.model))
    config.num_labels = 1
    auto = transformers.AutoModelForCausalLM if kind == "actor" else transformers.AutoModelForTokenClassification
    with FakeTensorMode():
        model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa").train(backward)
        if s.activation_checkpointing and backward:
            recompute_activations(model)
        module = PolicyModule(model, s.logits_chunk) if kind == "actor" else CriticModule(model)
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        tokens = torch.zeros(1, s.token_budget, dtype=torch.long)
        positions, targets = torch.arange(s.token_budget)[None], torch.zeros(s.token_budget, dtype=torch.long)
        # Without a mask torch takes its fused causal kernel, which keeps what flash attention keeps.
        extra: dict[str, Any] = {"attention_mask": {"full_attention": None}} if s.attention != "sdpa" else {}
        live = LiveBytes()
        with live, torch.set_grad_enabled(backward):
            out = (
                module(tokens, positions, targets, not backward, **extra)[0]
                if kind == "actor"
                else module(tokens, positions, **extra)
            )
            if backward:
                out.sum().backward()
    return live.peak - live.start


# ---------------------------------------------------------------------------------------------------------
# The learner for real
# ---------------------------------------------------------------------------------------------------------


def random_model(folder: Path, config: Any, dtype: torch.dtype) -> Path:
    """A transformers folder with random weights."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    model.save_pretrained(folder)
    return folder


def random_rollout(rows: int, length: int, vocab: int) -> Any:
    """Rows of `length` tokens, a quarter of them prompt."""
    from minivapo.interfaces import Sample, make_rollout

    g = torch.Generator().manual_seed(0)
    prompt = length // 4
    tokens = torch.randint(0, vocab, (rows, length), generator=g).tolist()
    samples = [Sample(t[prompt:], [0.0] * (length - prompt), True) for t in tokens]
    return make_rollout([t[:prompt] for t in tokens], samples, [0] * rows, 0)


def sum_loss(name: str) -> Any:
    """A loss that touches every output of a response's tokens."""

    def loss_fn(outputs: Any, rows: Any) -> Any:
        loss = (outputs[name].float() * rows.mask).sum() * 1e-4
        return loss, {"loss": loss.detach()}, {}

    return loss_fn


class Measure:
    """Peak bytes of a block: CUDA's own count, or live storages on the CPU."""

    def __init__(self, base: int) -> None:
        self.base = base

    def __enter__(self) -> Measure:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self.mode = LiveBytes()
            self.mode.__enter__()
        return self

    def __exit__(self, *_: Any) -> None:
        self.peak = max(self.read(), self.peak)
        if not torch.cuda.is_available():
            self.mode.__exit__(None, None, None)

    peak = 0.0

    def read(self) -> float:
        """The peak so far, in bytes beyond the base."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() - self.base
        return self.mode.peak - self.base

    @contextlib.contextmanager
    def apart(self, engine: Any) -> Iterator[Measure]:
        """Within the block, this measures up to the optimizer's step, and what is given measures that step."""
        whole, step = engine.step, Measure(self.base)

        def measured() -> None:
            self.peak = self.read()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            else:
                self.mode.peak = self.mode.live
            whole()
            step.peak = self.read()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            else:
                self.mode.peak = 0

        engine.step = measured
        yield step
        engine.step = whole


def learner_rows(folder: Path, config: Any, tokens: int, bucket: float, **settings: Any) -> Iterator[Row]:
    """One learner of each kind: at rest, in a forward pass and in a step, this rank's bytes against the plan's."""
    import scaled.learner as learner_module
    from minivapo.vapo import Config
    from scaled.world import start

    world = start()
    default = learner_module.deepspeed_config

    def with_buckets(c: Config, s: Settings) -> dict[str, Any]:
        # Small buffers, so that what is measured is not all buffers; at real sizes next to nothing is persistent.
        result = default(c, s)
        size = {"reduce_bucket_size": int(bucket), "stage3_max_live_parameters": int(bucket)}
        size |= {"stage3_max_reuse_distance": int(bucket), "stage3_prefetch_bucket_size": int(bucket) // 20}
        # Reduction overlaps with the backward pass as on a GPU: that decides how many buckets there are.
        result["zero_optimization"] |= size | {"stage3_param_persistence_threshold": 0, "overlap_comm": True}
        return result

    learner_module.deepspeed_config = with_buckets
    adam, torch.optim.AdamW = torch.optim.AdamW, FusedAdamW
    try:
        length = tokens // 8
        job = job_for(
            str(folder), token_budget=tokens, ranks=world.size, ranks_per_node=world.size, batch_size=16 * world.size,
            mini_batch=16 * world.size, max_prompt_tokens=length // 4, max_new_tokens=length - length // 4, **settings,
        )  # fmt: skip
        assume = dataclasses.replace(
            Assumptions(), bucket_elements=bucket, live_elements=1.05 * bucket, fragmentation=0
        )
        setup = make_setup(job, this_gpu() or "h100-80", assume)
        rollout = random_rollout(16, length, config.vocab_size)
        for kind, shape in reversed(setup.learners):
            base = torch.cuda.memory_allocated() if torch.cuda.is_available() else bytes_alive()
            learner = learner_module.DeepSpeedLearner(folder, kind, job.config, job.settings, world)
            rest = (torch.cuda.memory_allocated() if torch.cuda.is_available() else bytes_alive()) - base
            parts = part_bytes(learner)
            with Measure(base) as forward:
                learner.forward(rollout)
            with Measure(base) as backward, backward.apart(learner.engine) as step:
                learner.step(rollout, sum_loss("logprobs" if kind == "actor" else "values"), 1e-4)
            words = ", ".join(f"{k} {v}" for k, v in settings.items())
            name = f"{kind}, {world.size} rank(s), {words}"
            planned = resident(setup, kind, shape)
            for part, x in parts.items():
                # On the CPU an offloaded optimizer lies where the others do.
                expected = 12 * shape.parameters / world.size if part == "optimizer" else planned.get((kind, part), x)
                yield row("deepspeed", f"{part}: {name}", expected, x, "bytes")
            yield from compare(setup, kind, shape, name, rest, forward.peak, backward.peak, step.peak)
            learner.engine.destroy()
            del learner
            gc.collect()
    finally:
        learner_module.deepspeed_config = default
        torch.optim.AdamW = adam


def part_bytes(learner: Any) -> dict[str, int]:
    """Bytes on this rank of weights, optimizer (master weights and moments) and, under ZeRO-3, gradients."""
    optimizer = learner.engine.optimizer
    state = [x for s in optimizer.optimizer.state.values() for x in s.values() if x.ndim]
    if learner.settings.zero_stage == 3:
        weights = [p.ds_tensor for p in learner.model.parameters()]
        parts = {"gradients": [optimizer.grad_partitions_flat_buffer]}
        master = optimizer.fp32_partitioned_groups_flat
    else:
        weights, parts, master = list(learner.model.parameters()), {}, optimizer.single_partition_of_fp32_groups
    parts = {"weights": weights, "optimizer": [*state, *master]} | parts
    return {name: storage_bytes(tensors) for name, tensors in parts.items()}


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of their storages, each once."""
    return sum({s._cdata: s.nbytes() for s in (t.untyped_storage() for t in tensors)}.values())


def compare(
    setup: Setup, kind: str, shape: Shape, name: str, rest: float, forward: float, backward: float, step: float
) -> Iterator[Row]:
    """The plan's numbers for one learner beside the measured ones."""
    at_rest = resident(setup, kind, shape)
    if setup.job.settings.offload_optimizer and not torch.cuda.is_available():
        # On the CPU, CPU memory is the device's memory too.
        share = shape.parameters / setup.job.settings.ranks
        at_rest = add(at_rest, {(kind, "optimizer"): OFFLOADED * share})
    total = sum(at_rest.values())
    yield row("deepspeed", f"at rest: {name}", total, rest, "bytes")
    for what, extra, measured in (
        ("forward", forward_memory, forward),
        ("backward", backward_memory, backward),
        ("step", step_memory, step),
    ):
        planned = total + sum(extra(setup, kind, shape).values())
        yield row("deepspeed", f"{what}: {name}", planned, measured, "bytes")


def check_learner() -> Iterator[Row]:
    """FLOPs of a learner's forward pass and step; eager attention, of which the counter sees the whole square."""
    from scaled.learner import DeepSpeedLearner
    from scaled.world import start

    world, tokens = start(), 512
    with tempfile.TemporaryDirectory() as folder:
        random_model(Path(folder), SMALL, torch.float32)
        for checkpointing in (True, False):
            job = job_for(
                folder, token_budget=tokens, attention="eager", dtype="float32", zero_stage=2, logits_chunk=256,
                activation_checkpointing=checkpointing, max_prompt_tokens=16, max_new_tokens=48,
            )  # fmt: skip
            setup = make_setup(job)
            rollout = random_rollout(16, 64, SMALL.vocab_size)  # two full micro-batches
            work = Load(16, 16, 16 * 64, 16 * 48, 16 * 64**2)
            for kind, shape in setup.learners:
                learner = DeepSpeedLearner(folder, kind, job.config, job.settings, world)
                with FlopCounterMode(display=False) as forward:
                    learner.forward(rollout)
                with FlopCounterMode(display=False) as update:
                    learner.step(rollout, sum_loss("logprobs" if kind == "actor" else "values"), 1e-4)
                for name, counter, backward in (("forward", forward, False), ("update", update, True)):
                    planned = pass_flops(setup, shape, work, backward)
                    words = f"{name}: {kind}, {'' if checkpointing else 'no '}checkpointing"
                    yield row("learner", words, planned, counter.get_total_flops(), "FLOPs")
                learner.engine.destroy()


def check_vllm(most: int | None = None) -> Iterator[Row]:
    """KV cache of a real engine on all ranks."""
    from minivapo.loading import load_tokenizer
    from minivapo.tasks import BASES
    from scaled.sampler import VllmSampler
    from scaled.world import start

    world = start()
    shape = {k: getattr(SMALL, k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}
    shape |= {"intermediate_size": SMALL.intermediate_size, "max_position_embeddings": 4096}
    for kv_heads, dtype in ((4, "bfloat16"), (1, "float32"))[:most]:
        with tempfile.TemporaryDirectory() as folder:
            config = transformers.LlamaConfig(**shape, num_key_value_heads=kv_heads, tie_word_embeddings=False)
            path = Path(world.agree(lambda: folder))
            if world.rank == 0:
                config.architectures = ["LlamaForCausalLM"]
                config.save_pretrained(path)  # vLLM is asked for no weights
                load_tokenizer(BASES / "chain").save_pretrained(path)
            world.sum(torch.zeros(1))
            job = job_for(str(path), dtype=dtype, tensor_parallel=world.size, ranks=world.size)
            setup = make_setup(job)
            sampler = VllmSampler(path, job.config, job.settings, world, [0])
            [cache] = sampler.llm.collective_rpc(cache_bytes)
            cached = sampler.llm.llm_engine.vllm_config.cache_config
            slots = cached.num_gpu_blocks * cached.block_size
            words = f"{world.size} rank(s) an engine, {kv_heads} key-value heads, {dtype}"
            yield row("vllm", f"KV cache: {words}", kv_token_bytes(setup), cache / slots, "bytes a token")
            world.sum(torch.zeros(1))


def cache_bytes(worker: Any) -> int:
    """Bytes of a vLLM worker's KV cache."""
    return storage_bytes(tree_iter(worker.model_runner.kv_caches))


class FusedAdamW(torch.optim.AdamW):
    """The fused kernel, which the learner uses on GPUs: without it a step on the CPU makes temporaries."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords | {"fused": True})


def check_deepspeed(device: str, model: str, tokens: int, most: int | None = None) -> Iterator[Row]:
    """ZeRO stages and dtypes; small on the CPU, a real shape on a GPU."""
    on_gpu = device == "cuda"
    config = model_config(model) if on_gpu else SMALL
    cases: list[dict[str, Any]] = [
        {"zero_stage": stage, "dtype": dtype, "activation_checkpointing": checkpointing}
        for stage, dtype, checkpointing in (
            (3, "bfloat16", True), (2, "bfloat16", True), (3, "float32", False), (2, "float32", False)
        )
    ]  # fmt: skip
    cases.append({"zero_stage": 3, "dtype": "bfloat16", "offload_optimizer": True})
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        cases.append({"zero_stage": 3, "dtype": "bfloat16", "sequence_parallel": 2})
        cases.append({"zero_stage": 2, "dtype": "float32", "sequence_parallel": 2, "activation_checkpointing": False})
    attention = "auto" if on_gpu else "sdpa"
    with tempfile.TemporaryDirectory() as folder:
        rank = int(os.environ.get("RANK", "0"))
        path = Path(os.environ.get("PLAN_CHECK_MODEL", folder))
        if rank == 0 and not (path / "config.json").exists():
            random_model(path, config, torch.bfloat16)
        for case in cases[: 2 if on_gpu else most]:
            bucket = 5e8 if on_gpu else 2e6
            yield from learner_rows(path, config, tokens, bucket, attention=attention, logits_chunk=256, **case)


def under_torchrun(ranks: int, check: str) -> list[Row]:
    """A check on several ranks, or in a process of its own; the rows of rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        random_model(Path(folder) / "model", SMALL, torch.bfloat16)
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), __file__]
        environment = os.environ | {"PLAN_CHECK_MODEL": str(Path(folder) / "model"), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *words, "--only", check, "--json", str(out)], env=environment, check=True)
        return json.loads(out.read_text())["rows"]


def main() -> None:
    """Runs the checks, prints and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--model", default="Qwen2.5-1.5B", help="shape for --device cuda")
    parser.add_argument("--tokens", type=int, help="token budget of the learner's checks")
    parser.add_argument("--only", choices=CHECKS)
    parser.add_argument("--cases", type=int, help="only so many cases of deepspeed and vllm")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", action="store_true", help="only write docs/plan-32b.md anew")
    args = parser.parse_args()
    if args.docs:
        PAGE.write_text(fill_page(PAGE.read_text()))
        return
    tokens = args.tokens or (16384 if args.device == "cuda" else 1024)
    checks = {
        "parameters": check_parameters, "saved": check_saved, "flops": check_flops, "peak": check_peak,
        "learner": check_learner, "deepspeed": lambda: check_deepspeed(args.device, args.model, tokens, args.cases),
        "vllm": lambda: check_vllm(args.cases),
    }  # fmt: skip
    if args.device == "cuda":
        checks = {"deepspeed": checks["deepspeed"]}
    elif args.only is None:
        del checks["vllm"]  # it changes the process: below, in its own
    first = int(os.environ.get("RANK", "0")) == 0
    for name, check in checks.items():
        rows: list[Row] = []
        for found in check() if args.only in (None, name) else ():
            rows.append(found)
            if first:
                print(f"{100 * found['error']:+8.2f} %  {found['check']:<10} {found['case']}", flush=True)
        if rows and first:
            write(rows, args)
    if args.device == "cpu" and args.only is None:
        for ranks, name in ((2, "deepspeed"), (1, "vllm"), (2, "vllm")):
            write(under_torchrun(ranks, name), args)


def write(rows: list[Row], args: argparse.Namespace) -> None:
    """Rows into the JSON, with where they were measured, and the CSV; rows of other cases stay there."""
    name = "plan_check" if args.device == "cpu" else f"plan_check_{args.device}"
    path = args.json or HERE / f"{name}.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {(r["check"], r["case"]) for r in rows}
    rows = [r for r in known if (r["check"], r["case"]) not in new] + rows
    rows.sort(key=lambda r: CHECKS.index(r["check"]))
    about = {
        "command": f"python benchmarks/plan_check.py --device {args.device}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "not_run": [] if args.device == "cuda" else ["--device cuda: allocator, kernels and buffers of a real GPU"],
    }
    path.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    if args.json is None:
        with (HERE / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({**r, "error": f"{r['error']:.5f}"} for r in rows)


# ---------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------


def fill_page(text: str) -> str:
    """Replaces what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` by what the plan says now."""
    parts = {"plan": plan_part, "assumptions": assumptions_part, "what-if": what_if_part, "configs": configs_part}
    parts["errors"] = errors_part
    for name, make in parts.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{make().strip()}\n\n{end}{tail}"
    return text


def config_path(name: str) -> Path:
    """A shipped config."""
    return HERE.parent / "scaled" / "configs" / f"{name}.yaml"


def plan_part() -> str:
    """The 32B plan."""
    return markdown(plan(read_job(config_path("qwen2.5-32b-64gpu"))))


def assumptions_part() -> str:
    """Every assumption with its default and what it means, from the source."""
    import ast
    import inspect

    [found] = ast.parse(inspect.getsource(Assumptions)).body
    assert isinstance(found, ast.ClassDef)
    lines = ["| flag | default | meaning |", "|---|--:|---|"]
    for field, text in itertools.pairwise(found.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            name = field.target.id
            meaning = " ".join(str(text.value.value).split())
            default = getattr(Assumptions(), name)
            assert not isinstance(default, bool)  # a switch is two flags, --name and --no-name
            lines.append(f"| `--{name.replace('_', '-')}` | {default:g} | {meaning} |")
    return "\n".join(lines)


def summary_row(name: str, plan: Plan) -> str:
    """Fits, peak memory, one step, the run."""
    total = sum(plan.run.values())
    hours = total / 3600 * plan.setup.job.settings.ranks
    peak = f"{gib(plan.peak.total)} of {gib(plan.setup.gpu.memory)} ({plan.peak.name})"
    fits = "yes" if plan.fits else "no"
    step = duration(sum(plan.step.values()))
    return f"| {name} | {fits} | {peak} | {step} | {duration(total)} | {hours:,.0f} |"


HEADER = "| {} | fits | peak, GiB | one step | whole run | GPU-hours |\n|---|---|---|--:|--:|--:|\n"


def what_if_part() -> str:
    """The 32B run with one thing changed."""
    variants: list[tuple[str, list[str], str, dict[str, float]]] = [
        ("as shipped", [], "h100-80", {}),
        ("`--gpu h200-141`", [], "h200-141", {}),
        ("`--gpu a100-80`", [], "a100-80", {}),
        ("`--ranks 128`", ["ranks=128"], "h100-80", {}),
        ("`--ranks 32`", ["ranks=32"], "h100-80", {}),
        ("`--tensor-parallel 8`", ["tensor_parallel=8"], "h100-80", {}),
        ("`--critic Qwen/Qwen2.5-7B`", ["critic=Qwen/Qwen2.5-7B"], "h100-80", {}),
        ("`--response-share 0.5`", [], "h100-80", {"response_share": 0.5}),
        ("`--learner-efficiency 0.3`", [], "h100-80", {"learner_efficiency": 0.3}),
        ("`--preset dapo` (no critic)", ["preset=dapo"], "h100-80", {}),
    ]
    rows = []
    for name, overrides, gpu, assume in variants:
        job = read_job(config_path("qwen2.5-32b-64gpu"), overrides)
        rows.append(summary_row(name, plan(job, gpu, Assumptions(**assume))))
    return HEADER.format("change") + "\n".join(rows)


def configs_part() -> str:
    """Every shipped config, and small cards."""
    small = ["token_budget=4096", "sampler_memory=0.35", "offload_optimizer=true"]
    variants = [
        ("`qwen2.5-32b-64gpu`", "qwen2.5-32b-64gpu", [], "h100-80"),
        ("`qwen2.5-7b-8gpu`", "qwen2.5-7b-8gpu", [], "h100-80"),
        ("`qwen2.5-0.5b-1gpu`", "qwen2.5-0.5b-1gpu", [], "h100-80"),
        (f"`qwen2.5-0.5b-1gpu --gpu rtx4090-24 {' '.join(small[:2])}`", "qwen2.5-0.5b-1gpu", small[:2], "rtx4090-24"),
        (f"`qwen2.5-0.5b-1gpu --gpu rtx4080-16 {' '.join(small)}`", "qwen2.5-0.5b-1gpu", small, "rtx4080-16"),
    ]
    rows = [summary_row(name, plan(read_job(config_path(config), words), gpu)) for name, config, words, gpu in variants]
    return HEADER.format("run") + "\n".join(rows)


def errors_part() -> str:
    """Largest errors by check, from plan_check.json."""
    rows: list[Row] = json.loads((HERE / "plan_check.json").read_text())["rows"]
    lines = ["| check | cases | least | largest |", "|---|--:|--:|--:|"]
    groups: dict[str, list[float]] = {}
    for found in rows:
        words = found["case"].partition(":")[0]
        name = f"{found['check']}: {words}" if found["check"] in ("peak", "deepspeed") else found["check"]
        groups.setdefault(name, []).append(found["error"])
    lines += [f"| {name} | {len(e)} | {100 * min(e):+.1f} % | {100 * max(e):+.1f} % |" for name, e in groups.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
