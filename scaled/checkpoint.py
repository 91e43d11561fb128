"""A network under DeepSpeed ZeRO-2 or ZeRO-3, behind `minivapo.interfaces.Learner`.

The loop hands each rank its rows of a mini-batch. Here the rows of all ranks are dealt anew so that every
rank has the same work, cut into micro-batches by tokens, and packed without padding. The loss of a
micro-batch is divided by counts over the whole mini-batch already, so the gradient is the plain *sum* over
micro-batches and ranks: the same for any number of either.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
import transformers
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from minivapo.interfaces import LossFn, Metrics, NonFiniteError, Outputs, Rollout, UserError, join
from minivapo.loading import load_actor, load_critic
from minivapo.vapo import Config
from scaled.config import Settings
from scaled.faults import tick
from scaled.layers.head import CriticModule, PolicyModule
from scaled.layers.packing import Packed, balance, cut, imbalance, make_rows, pack, slice_of, tensors, to_device, unpack
from scaled.layers.ulysses import JoinSlices, group_of, install
from scaled.world import ON_GPU, DistributedWorld, local_device

GATHER = 2**28
"""Elements gathered from ZeRO-3 shards at once (0.5 GiB in bf16), or one tensor where that is larger."""
SHARD = 2**32
"""Bytes of optimizer state that one rank writes before another rank helps."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedLearner:
    """Actor or critic, sharded over all ranks, see `minivapo.interfaces.Learner`. Every method is collective.

    Args:
        source: transformers folder or hub name.
        kind: "actor" (outputs logprobs, entropy) or "critic" (values, scores).
        config: weight_decay, max_grad_norm, seed are read.
        settings: how to run.
        world: the ranks.
        frozen: no optimizer; for a reference model.
    """

    def __init__(
        self,
        source: str | Path,
        kind: Literal["actor", "critic"],
        config: Config,
        settings: Settings,
        world: DistributedWorld,
        frozen: bool = False,
    ) -> None:
        self.kind, self.config, self.settings, self.world, self.frozen = kind, config, settings, world, frozen
        self.device = local_device()
        self.version = 0
        self.dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
        self.model = load_model(source, kind, config, settings)
        self.place = world.rank % settings.sequence_parallel
        self.attention = attention_name(self.model, kind, settings)
        self.model.set_attn_implementation(self.attention)
        if settings.activation_checkpointing and not frozen:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        module = PolicyModule(self.model, settings.logits_chunk) if kind == "actor" else CriticModule(self.model)
        self.cost_slope = attention_share(self.model)
        self.engine = self.start(module)
        if not frozen:
            self.reset_optimizer()

    def start(self, module: nn.Module) -> Any:
        """DeepSpeed's engine around the module; a frozen one without ZeRO-3 needs none."""
        if self.frozen and self.settings.zero_stage != 3:
            return module.to(self.device, self.dtype)
        optimizer = None
        if not self.frozen:
            # torch's own AdamW on the shards: the same numbers as the local engine's.
            optimizer = torch.optim.AdamW(
                module.parameters(), lr=0.0, weight_decay=self.config.weight_decay, fused=ON_GPU
            )
        with quiet():
            engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,  # type: ignore[arg-type]
                config=deepspeed_config(self.config, self.settings),
                dist_init_required=False,
            )
        return engine

    # -----------------------------------------------------------------------------------------------------
    # Forward and step
    # -----------------------------------------------------------------------------------------------------

    def outputs(self, rows: Rollout, entropy: bool) -> Outputs:
        """Packed forward pass over one micro-batch; outputs are padded [rows, time], on the device."""
        width = rows.tokens.shape[1]
        result = self.run(pack(rows.tokens, rows.totals, self.device), entropy)
        if self.kind == "critic":
            return {
                "values": unpack(result[0], rows.totals, width, shift=True),
                "scores": unpack(result[0], rows.totals, width, shift=False),
            }
        out = {"logprobs": unpack(result[0], rows.totals, width, shift=True)}
        if entropy:
            out["entropy"] = unpack(result[1], rows.totals, width, shift=True)
        return out

    def run(self, packed: Packed, entropy: bool) -> tuple[Tensor, ...]:
        """One pass of the network; [total] results."""
        tick(f"{self.kind} micro-batch")
        ranks = self.settings.sequence_parallel
        attention: dict[str, Any] = packed.attention() if self.attention == "flash_attention_2" else {}
        if ranks > 1:
            packed = slice_of(packed, self.place, ranks)
            attention = {"cu_seq_lens_q": packed.bounds.cpu()}  # read in every layer, by the CPU
        if self.kind == "critic":
            found = (self.engine(packed.tokens, packed.positions, **attention),)
        else:
            found = self.engine(packed.tokens, packed.positions, packed.targets, entropy, **attention)
        return found if ranks == 1 else tuple(JoinSlices.apply(x, group_of(ranks)) for x in found)  # type: ignore

    def idle(self) -> Tensor:
        """A pass over two tokens that weighs nothing, to keep step with ranks that have more micro-batches."""
        tokens = torch.zeros(1, 2, dtype=torch.long)
        return self.run(pack(tokens, torch.tensor([2]), self.device), False)[0].sum() * 0.0

    @torch.no_grad()
    def forward(self, rollout: Rollout) -> Outputs:
        """See `minivapo.interfaces.Learner.forward`; rows travel to the rank that works on them, outputs back."""
        self.engine.eval()
        mine, origin, _ = self.deal(rollout)
        micro = self.cut(mine)
        found: Outputs = {}
        for i in range(self.passes(micro)):
            if i >= len(micro):
                self.idle()
                continue
            for name, x in self.outputs(mine.rows(micro[i]), entropy=True).items():
                whole = found.setdefault(name, torch.zeros(mine.tokens.shape, dtype=x.dtype))
                whole[torch.tensor(micro[i]), : x.shape[1]] = x.cpu()
        return self.give_back(found, origin, rollout)

    def step(self, rollout: Rollout, loss_fn: LossFn, lr: float) -> tuple[Metrics, Metrics]:
        """See `minivapo.interfaces.Learner.step`; the maxima also hold the `imbalance` of work over the ranks."""
        self.engine.train()
        mine, _, unequal = self.deal(rollout)
        micro = self.cut(mine)
        passes = self.passes(micro)
        sums: dict[str, Tensor] = {}
        maxima: dict[str, Tensor] = {}
        total = 0.0
        for i in range(passes):
            self.engine.set_gradient_accumulation_boundary(i == passes - 1)
            if i < len(micro):
                rows = mine.rows(micro[i])
                loss, part_sums, part_maxima = loss_fn(self.outputs(rows, False), to_device(rows, self.device))
                for name, x in part_sums.items():
                    sums[name] = sums.get(name, torch.zeros_like(x)) + x
                for name, x in part_maxima.items():
                    maxima[name] = torch.maximum(maxima[name], x) if name in maxima else x
            else:
                loss = self.idle()
            if i == passes - 1:
                # DeepSpeed refuses a step whose gradient norm is not finite. A loss that is not finite must be
                # refused as well, by all ranks: it is made so that its gradient is not finite either.
                share = sums.get("loss", torch.zeros(())).double() / self.settings.sequence_parallel
                total = float(self.world.sum(share))
                if not math.isfinite(total):
                    loss = loss * math.nan
            # DeepSpeed averages over ranks; the gradient wanted is the sum.
            self.engine.backward(loss * self.world.size)
        self.set_lr(lr)
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        # The ranks that share rows have the same sums: one of them speaks for all.
        numbers = {name: float(x) if self.place == 0 else 0.0 for name, x in sums.items()}
        if self.engine.optimizer.overflow or not math.isfinite(norm):
            raise NonFiniteError(
                f"{self.kind}: loss {total}, gradient norm {norm}; the step was refused. Lower {self.kind}_lr, or "
                "resume from the last checkpoint with another seed."
            )
        self.version += 1
        peaks = {name: float(x) for name, x in maxima.items()}
        return numbers, {**peaks, "imbalance": unequal, "grad_norm": norm}

    def set_lr(self, lr: float) -> None:
        """Sets the learning rate of the next step."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    def cut(self, rows: Rollout) -> list[list[int]]:
        """Rows into micro-batches of `token_budget` tokens for each rank that works on them."""
        return cut(rows.totals.tolist(), self.settings.token_budget * self.settings.sequence_parallel)

    def passes(self, micro: Sequence[Any]) -> int:
        """Micro-batches of the rank that has most: every pass is collective, so all ranks make as many."""
        return int(self.world.max(torch.tensor(float(len(micro)))))

    # -----------------------------------------------------------------------------------------------------
    # Work for every rank
    # -----------------------------------------------------------------------------------------------------

    def cost(self, total: int) -> float:
        """Work of a row in tokens; attention makes it grow a little faster than its length."""
        return total * (1 + self.cost_slope * total)

    def deal(self, rollout: Rollout) -> tuple[Rollout, list[Tensor], float]:
        """Deals the rows of all ranks anew, evenly by cost; ranks that share rows get the same ones.

        Returns:
            This rank's new rows; for each rank, which of its rows came here, in this order; the imbalance left.
        """
        world, sharing = self.world, self.settings.sequence_parallel
        totals = world.gather(rollout.totals)
        costs = [self.cost(int(n)) for part in totals for n in part]
        owner = torch.tensor(balance(costs, world.size // sharing))
        unequal = imbalance(costs, owner.tolist(), world.size // sharing)
        if world.size == 1:
            return rollout, [torch.arange(len(rollout))], unequal
        owners = owner.split([len(part) for part in totals])
        outgoing = []
        for rank in range(world.size):
            index = (owners[world.rank] == rank // sharing).nonzero()[:, 0]
            outgoing.append(tensors(rollout.rows(index)) if len(index) else {})
        incoming = [make_rows(part) for part in world.exchange(outgoing) if part]
        origin = [(part == world.rank // sharing).nonzero()[:, 0] for part in owners]
        return join(incoming, 0), origin, unequal

    def give_back(self, found: Outputs, origin: list[Tensor], rollout: Rollout) -> Outputs:
        """Outputs of the dealt rows, back on the ranks that the rows came from, in their order."""
        counts = [len(index) for index in origin]
        parts = [
            {name: x[start : start + n] for name, x in found.items()} | {"index": index}
            for start, n, index in zip(torch.tensor([0, *counts]).cumsum(0).tolist(), counts, origin, strict=False)
        ]
        if self.place:  # the first of the ranks that share rows speaks for all
            parts = [{} for _ in parts]
        result: Outputs = {}
        for part in self.world.exchange(parts):
            if not part:
                continue
            index = part.pop("index")
            for name, x in part.items():
                whole = result.setdefault(name, torch.zeros(rollout.tokens.shape, dtype=x.dtype))
                width = min(x.shape[1], whole.shape[1])  # beyond a rank's own width all is padding
                whole[index, :width] = x[:, :width]
        return result

    # -----------------------------------------------------------------------------------------------------
    # Weights
    # -----------------------------------------------------------------------------------------------------

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor of every parameter, gathered piecewise; all ranks must exhaust it together."""
        for bucket in buckets(list(self.model.named_parameters()), GATHER):
            tick(f"gathering {self.kind} weights")
            with gathered([p for _, p in bucket]):
                pieces = [(name, p.detach().clone()) for name, p in bucket]
            while pieces:
                yield pieces.pop(0)

    def save(self, folder: Path) -> None:
        """Writes a transformers folder (safetensors) and the optimizer beside the weights, as the local engine does.

        With float32 weights the files are those of `minivapo.local.LocalLearner.save`; with bfloat16 there
        is also `master.safetensors`. Large states are written by several ranks, to a file system they share.
        """
        state = {name: x.cpu() for name, x in self.weights() if self.world.rank == 0}
        if self.world.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            with quiet():
                self.model.save_pretrained(folder, state_dict=state)
            (folder / "learner.json").write_text(json.dumps({"version": self.version}))
        del state
        self.world.sum(torch.zeros(1))  # the folder exists before other ranks write into it
        named = list(self.model.named_parameters())
        sizes = [p.ds_numel if hasattr(p, "ds_numel") else p.numel() for _, p in named]
        writers = min(self.world.size, math.ceil(sum(sizes) * 12 / SHARD))
        owner = balance([float(n) for n in sizes], writers)
        moments: dict[str, Tensor] = {}
        master: dict[str, Tensor] = {}
        for (name, p), rank in zip(named, owner, strict=True):
            tick(f"saving {self.kind}")
            parts = {key: full(safe_get_full_optimizer_state(p, key)) for key in MOMENTS}
            copy = full(safe_get_full_fp32_param(p)) if self.dtype != torch.float32 else None
            if rank != self.world.rank:
                continue
            if self.version:
                moments[f"{name}|step"] = torch.tensor(float(self.version))
                moments |= {f"{name}|{key}": x.view(shape(p)) for key, x in parts.items()}
            if copy is not None:
                master[name] = copy.view(shape(p))
        if self.world.rank < writers:
            suffix = "" if writers == 1 else f"-{self.world.rank:05d}"
            save_file(moments, folder / f"optimizer{suffix}.safetensors")
            if master:
                save_file(master, folder / f"master{suffix}.safetensors")

    def load(self, folder: Path) -> None:
        """Takes back what `save` wrote, on any number of ranks, with any ZeRO stage; also from the local engine."""
        weights = TensorFiles(sorted(folder.glob("model*.safetensors")), self.world)
        master = TensorFiles(sorted(folder.glob("master*.safetensors")), self.world)
        moments = TensorFiles(sorted(folder.glob("optimizer*.safetensors")), self.world)
        steps = 0
        for name, p in self.model.named_parameters():
            tick(f"loading {self.kind}")
            value = weights.read(name, shape(p))
            with gathered([p], write=True):
                p.data.copy_(value)
            fp32 = master.read(name, shape(p)) if master.has(name) else value.float()
            set_shard(p, fp32, None)
            for key in MOMENTS:
                known = moments.has(f"{name}|{key}")
                set_shard(p, moments.read(f"{name}|{key}", shape(p)) if known else None, key)
            if moments.has(f"{name}|step"):
                steps = int(moments.read(f"{name}|step", torch.Size([])))
        self.set_steps(steps)
        version = torch.zeros(1, dtype=torch.long)
        if self.world.rank == 0:
            version[0] = json.loads((folder / "learner.json").read_text())["version"]
        self.version = int(self.world.sum(version))

    def reset_optimizer(self) -> None:
        """Makes Adam's state exist, with nothing learnt: DeepSpeed makes it in a first step, of rate 0."""
        self.engine.train()
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(self.idle())
        self.set_lr(0.0)
        self.engine.step()
        for p in self.model.parameters():
            for key in MOMENTS:
                set_shard(p, None, key)
        self.set_steps(0)

    def set_steps(self, steps: int) -> None:
        """Sets Adam's step count, on which its bias correction depends."""
        for state in self.engine.optimizer.optimizer.state.values():
            if "step" in state:
                state["step"] = torch.full_like(state["step"], float(steps))


def load_model(source: str | Path, kind: str, config: Config, settings: Settings) -> Any:
    """The network; under ZeRO-3 each rank holds its shard from the start, and never the whole.

    Raises:
        UserError: it cannot be loaded, or its log-probs are not those of its output embedding alone.
    """
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    # transformers loads shard by shard while such an object is alive.
    marker = HfDeepSpeedConfig(deepspeed_config(config, settings)) if settings.zero_stage == 3 else None
    with quiet():
        if kind == "actor":
            model = load_actor(source, dtype=dtype)
        else:
            model = load_critic(source, config.seed, dtype=dtype)
    del marker
    transformers.integrations.deepspeed.unset_hf_deepspeed_config()
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"{source} transforms its logits ({name}), which scaled.layers.head does not: use another model."
            )
    return model


def attention_name(model: Any, kind: str, settings: Settings) -> str:
    """The attention implementation to use; where ranks share rows it is made here. Collective.

    Raises:
        UserError: it was asked for by name and is not available here.
    """
    if settings.sequence_parallel > 1:
        return install(model, settings.sequence_parallel, f"ulysses-{kind}")
    available = ON_GPU and transformers.utils.is_flash_attn_2_available()
    if settings.attention == "flash_attention_2" and not available:
        raise UserError("attention is flash_attention_2, which needs CUDA and the flash-attn package: use auto.")
    if settings.attention != "auto":
        return settings.attention
    return "flash_attention_2" if available else "sdpa"


def attention_share(model: Any) -> float:
    """s such that a row of l tokens costs l (1 + s l): attention's FLOPs over the weights', per token of length.

    Per token the weights take 2 N FLOPs and causal attention 2 · layers · width · l.
    """
    config = model.config
    heads = getattr(config, "num_attention_heads", 1)
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    count = sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in model.parameters())
    return config.num_hidden_layers * width / max(count, 1)


def deepspeed_config(config: Config, settings: Settings) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Micro-batches are ours: DeepSpeed is told of one, and of the boundary by hand.
    """
    zero: dict[str, Any] = {"stage": settings.zero_stage, "contiguous_gradients": True, "overlap_comm": ON_GPU}
    if settings.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": ON_GPU}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def shape(p: Any) -> torch.Size:
    """The whole shape of a parameter, sharded or not."""
    return p.ds_shape if hasattr(p, "ds_shape") else p.shape


def full(x: Tensor | None) -> Tensor:
    """A gathered state on the CPU."""
    assert x is not None
    return x.detach().float().cpu().contiguous()


def set_shard(p: Any, value: Tensor | None, key: str | None) -> None:
    """Puts this rank's part of a whole fp32 tensor into its master weight (key None) or Adam moment; None is 0."""
    if hasattr(p, "ds_id"):
        # DeepSpeed's own setter for whole tensors fails where the size is no multiple of the ranks.
        part = safe_get_local_fp32_param(p) if key is None else safe_get_local_optimizer_state(p, key)
        assert part is not None
        mine = torch.zeros(part.numel(), device=part.device)
        if value is not None:
            piece = value.flatten()[part.numel() * dist.get_rank() :][: part.numel()]
            mine[: len(piece)] = piece.to(part.device)
        if key is None:
            deepspeed.utils.safe_set_local_fp32_param(p, mine)
        else:
            deepspeed.utils.safe_set_local_optimizer_state(p, mine, key)
        return
    value = torch.zeros(shape(p)) if value is None else value
    if key is None:
        deepspeed.utils.safe_set_full_fp32_param(p, value)
    else:
        deepspeed.utils.safe_set_full_optimizer_state(p, value, key)


def buckets(named: Sequence[tuple[str, Any]], limit: int) -> Iterator[list[tuple[str, Any]]]:
    """Consecutive parameters of at most `limit` elements together; a larger one alone."""
    bucket: list[tuple[str, Any]] = []
    size = 0
    for name, p in named:
        n = math.prod(shape(p))
        if bucket and size + n > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, p))
        size += n
    if bucket:
        yield bucket


def gathered(parameters: list[Any], write: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Makes ZeRO-3 parameters whole for a while; with `write`, what rank 0 puts there is kept on all ranks."""
    if not hasattr(parameters[0], "ds_id"):
        return torch.no_grad()
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)


class TensorFiles:
    """Tensors of some safetensors files by name; rank 0 reads, the others get copies, one tensor at a time."""

    def __init__(self, paths: Sequence[Path], world: DistributedWorld) -> None:
        self.world = world
        self.where: dict[str, Any] = {}
        if world.rank == 0:
            for path in paths:
                file = safe_open(path, framework="pt")
                self.where |= dict.fromkeys(file.keys(), file)
        names: list[Any] = [list(self.where)]
        dist.broadcast_object_list(names, src=0)
        self.names = set(names[0])

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self.names

    def read(self, name: str, size: torch.Size) -> Tensor:
        """A tensor in fp32, on the CPU of every rank (bf16 weights are exact in fp32)."""
        if name not in self.names:
            raise UserError(
                f"the checkpoint has no tensor '{name}': it is of another model; resume the run it is from."
            )
        x = self.where[name].get_tensor(name).float() if self.world.rank == 0 else torch.empty(size)
        if self.world.size > 1:
            dist.broadcast(x, src=0)
        return x


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and notices of other libraries."""
    import logging

    transformers.utils.logging.disable_progress_bar()
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
