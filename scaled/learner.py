"""A network under DeepSpeed ZeRO-2 or ZeRO-3, behind `minivapo.interfaces.Learner`.

The rows that a rank holds are cut into micro-batches by tokens and packed without padding. The loss of a micro-batch
is divided by counts over the whole mini-batch already, so the gradient is the plain *sum* over micro-batches and ranks:
the same for any number of either, and however the rows are spread over the ranks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import deepspeed
import torch
import transformers
from torch import Tensor, nn
from transformers.integrations import HfDeepSpeedConfig

from minivapo.interfaces import LossFn, Metrics, NonFiniteError, Outputs, Rollout, UserError, join
from minivapo.loading import load_actor, load_critic, recompute_activations
from minivapo.vapo import Config
from scaled.balance import balance, cut, make_rows, tensors
from scaled.checkpoint import forget_moments, load_learner, save_learner, whole_weights
from scaled.config import Settings
from scaled.faults import tick
from scaled.layers import attention
from scaled.layers.head import CriticModule, PolicyModule, changes_logits
from scaled.layers.packing import Packed, pack, slice_of, unpack
from scaled.layers.ulysses import JoinSlices, group_of, install
from scaled.world import ON_GPU, DistributedWorld, all_cores, local_device

OUTPUTS = {"actor": ("logprobs", "entropy"), "critic": ("values", "scores")}
"""What `forward` gives, by the kind of learner."""


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
        try:
            self.model.set_attn_implementation(self.attention)
        except ValueError as error:
            raise UserError(
                f"{type(self.model).__name__} has no attention of the kind {self.attention}: train it with minivapo "
                "train, or set attention to eager if it has any."
            ) from error
        if settings.activation_checkpointing and not frozen:
            recompute_activations(self.model)
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
                optimizer=optimizer,
                config=deepspeed_config(self.config, self.settings),
                dist_init_required=False,
            )
        return engine

    # -----------------------------------------------------------------------------------------------------
    # Forward and step
    # -----------------------------------------------------------------------------------------------------

    def outputs(self, tokens: Tensor, totals: Tensor, entropy: bool) -> Outputs:
        """Packed forward pass over one micro-batch of padded rows; outputs are padded too, on the device."""
        width = tokens.shape[1]
        result = self.run(pack(tokens, totals, self.device), entropy)
        if self.kind == "critic":
            return {
                "values": unpack(result[0], totals, width, shift=True),
                "scores": unpack(result[0], totals, width, shift=False),
            }
        out = {"logprobs": unpack(result[0], totals, width, shift=True)}
        if entropy:
            out["entropy"] = unpack(result[1], totals, width, shift=True)
        return out

    def run(self, packed: Packed, entropy: bool) -> tuple[Tensor, ...]:
        """One pass of the network; [total] results."""
        tick(f"{self.kind} micro-batch")
        ranks = self.settings.sequence_parallel
        if ranks > 1:
            packed = slice_of(packed, self.place, ranks)
        bounds: dict[str, Any] = {} if self.attention in ("sdpa", "eager") else packed.attention()
        if self.kind == "critic":
            found = (self.engine(packed.tokens, packed.positions, **bounds),)
        else:
            found = self.engine(packed.tokens, packed.positions, packed.targets, entropy, **bounds)
        return found if ranks == 1 else tuple(JoinSlices.apply(x, group_of(ranks)) for x in found)

    def idle(self) -> Tensor:
        """A pass over two tokens that weighs nothing, to keep step with ranks that have more micro-batches."""
        tokens = torch.zeros(1, 2, dtype=torch.long)
        return self.run(pack(tokens, torch.tensor([2]), self.device), False)[0].sum() * 0.0

    @torch.no_grad()
    def forward(self, rollout: Rollout, training: bool = False) -> Outputs:
        """See `minivapo.interfaces.Learner.forward`; `training` has the network in the mode of `step`.

        Collective: ranks that have done their rows keep step.
        """
        self.engine.train(training)
        parts, mine = self.shared({"tokens": rollout.tokens, "totals": rollout.totals})
        width = max(part["tokens"].shape[1] for part in parts)
        tokens = torch.cat([nn.functional.pad(x["tokens"], (0, width - x["tokens"].shape[1])) for x in parts])
        totals = torch.cat([part["totals"] for part in parts])
        micro = self.cut(totals)
        found = {name: torch.zeros(tokens.shape) for name in OUTPUTS[self.kind]}
        for i in range(self.passes(micro)):
            if i >= len(micro):
                self.idle()
                continue
            index = torch.tensor(micro[i])
            part = tokens[index, : int(totals[index].max())]
            for name, x in self.outputs(part, totals[index], entropy=True).items():
                found[name][index, : x.shape[1]] = x.float().cpu()
        return {name: x[mine, : rollout.tokens.shape[1]] for name, x in found.items()}

    def step(self, rollout: Rollout, loss_fn: LossFn, lr: float) -> tuple[Metrics, Metrics]:
        """See `minivapo.interfaces.Learner.step`; the maxima also hold the `imbalance` of work over the ranks.

        Collective. A rank may hold no row of the mini-batch.
        """
        self.engine.train()
        rows = join([make_rows(part) for part in self.shared(tensors(rollout))[0]], pad=0)
        micro = self.cut(rows.totals)
        unequal = self.imbalance(rows.totals)
        passes = self.passes(micro)
        sums: dict[str, Tensor] = {}
        maxima: dict[str, Tensor] = {}
        total = 0.0
        for i in range(passes):
            self.engine.set_gradient_accumulation_boundary(i == passes - 1)
            if i < len(micro) or i == 0:
                # Without rows of its own a rank computes the loss of one that weighs nothing: the same names of sums.
                part = rows.rows(micro[i]) if micro else weightless(rows)
                outputs = self.outputs(part.tokens, part.totals, False)
                loss, part_sums, part_maxima = loss_fn(outputs, to_device(part, self.device))
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
        with all_cores() if self.settings.offload_optimizer else contextlib.nullcontext():
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

    # -----------------------------------------------------------------------------------------------------
    # Work for every rank
    # -----------------------------------------------------------------------------------------------------

    def cut(self, totals: Tensor) -> list[list[int]]:
        """Rows into micro-batches of `token_budget` tokens for each rank that works on them."""
        return cut(totals.tolist(), self.settings.token_budget * self.settings.sequence_parallel)

    def passes(self, micro: Sequence[Any]) -> int:
        """Passes that all ranks make: the micro-batches of the rank that has most, for every pass is collective."""
        return max(1, int(self.world.max(torch.tensor(float(len(micro))))))

    def cost(self, total: int) -> float:
        """Work of a row in tokens; attention makes it grow a little faster than its length."""
        return total * (1 + self.cost_slope * total)

    def imbalance(self, totals: Tensor) -> float:
        """The most loaded rank over the mean, for these rows here and the others elsewhere."""
        work = torch.tensor(sum(self.cost(n) for n in totals.tolist()), dtype=torch.float64)
        return float(self.world.max(work) * self.world.size / self.world.sum(work))

    def balance(self, rollout: Rollout, mini_batch: int) -> Rollout:
        """The rows that this rank holds from now on, see `scaled.balance.balance`.

        The costs of the actor stand for the critic's too: they rise with the length in nearly the same way.
        """
        return balance(rollout, mini_batch, self.world, self.cost, self.settings.sequence_parallel)

    def shared(self, parts: dict[str, Tensor]) -> tuple[list[dict[str, Tensor]], slice]:
        """What the ranks that share rows hold together, and which rows of it are this rank's own.

        Without sequence parallelism nothing travels. With it, each of these ranks works on the rows of all of them.
        """
        ranks = self.settings.sequence_parallel
        if ranks == 1:
            return [parts], slice(None)
        first = self.world.rank - self.place
        there = range(first, first + ranks)
        found = self.world.exchange([parts if rank in there else {} for rank in range(self.world.size)])
        shares = [found[rank] for rank in there]
        before = sum(len(share["totals"]) for share in shares[: self.place])
        return shares, slice(before, before + len(parts["totals"]))

    # -----------------------------------------------------------------------------------------------------
    # Weights
    # -----------------------------------------------------------------------------------------------------

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor of every parameter, gathered piecewise; all ranks must exhaust it together."""
        return whole_weights(self.model, self.kind)

    def save(self, folder: Path) -> None:
        """Writes a transformers folder (safetensors) and the optimizer beside the weights, as the local engine does.

        With float32 weights the files are those of `minivapo.local.LocalLearner.save`; with bfloat16 there
        is also `master.safetensors`. Large states are written by several ranks, to a file system they share.
        """
        save_learner(self.model, self.kind, self.version, self.dtype != torch.float32, folder, self.world)

    def load(self, folder: Path) -> None:
        """Takes back what `save` wrote, on any number of ranks, with any ZeRO stage; also from the local engine."""
        self.version = load_learner(self.model, self.kind, self.engine.optimizer, folder, self.world)

    def reset_optimizer(self) -> None:
        """Makes Adam's state exist, with nothing learnt: DeepSpeed makes it in a first step, of rate 0."""
        self.engine.train()
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(self.idle())
        self.set_lr(0.0)
        self.engine.step()
        forget_moments(self.model, self.engine.optimizer)


def weightless(rows: Rollout) -> Rollout:
    """A row of two tokens that no loss counts, with all that these rows, of which there are none, have filled in."""
    blank = {name: x.new_zeros(1, *[2] * (x.ndim - 1)) for name, x in tensors(rows).items()}
    return make_rows(blank | {"lengths": torch.tensor([1]), "totals": torch.tensor([2])})


def to_device(rows: Rollout, device: torch.device) -> Rollout:
    """The rows with all tensors on the device."""
    return make_rows({name: x.to(device) for name, x in tensors(rows).items()})


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
    if kind == "actor" and changes_logits(model):
        raise UserError(
            f"{source} changes its logits after the output embedding, by a soft cap or a scale, which "
            "scaled.layers.head does not: train it with minivapo train, or use another model."
        )
    return model


def attention_name(model: Any, kind: str, settings: Settings) -> str:
    """The attention implementation to use; where ranks share rows it is made here. Collective.

    Raises:
        UserError: it was asked for by name and is not available here.
    """
    if settings.sequence_parallel > 1:
        return install(model, settings.sequence_parallel, f"ulysses-{kind}")
    if settings.attention == "auto":
        return attention.NAME if attention.attends_plainly(model.config) else "sdpa"
    if settings.attention == "flash_attention_2":
        if not (ON_GPU and transformers.utils.is_flash_attn_2_available()):
            raise UserError("attention is flash_attention_2, which needs CUDA and the flash-attn package: use auto.")
        if settings.dtype == "float32":
            raise UserError("attention is flash_attention_2, which has no kernel for dtype float32: use auto.")
    return settings.attention


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
