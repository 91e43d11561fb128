"""The local engine: any transformers causal LM on one device (CPU, CUDA or MPS), with torch's AdamW.

It stands behind the interfaces of `minivapo.vapo` as DeepSpeed and vLLM do in `scaled`. Learner, sampler and engine are
in one file, under 500 lines, so that the whole of what runs on a laptop can be read beside `vapo.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.cache_utils import Cache

from minivapo.caches import arguments, make_cache
from minivapo.critics import score_in_float32
from minivapo.interfaces import (
    Gae,
    Learner,
    LossFn,
    Metrics,
    NonFiniteError,
    Outputs,
    Progress,
    Rollout,
    Sample,
    UserError,
    World,
    derive_seed,
)
from minivapo.loading import (
    check_fit,
    check_same_vocabulary,
    critic_source,
    load_actor,
    load_critic,
    load_shape,
    load_tokenizer,
    recompute_activations,
    stop_ids,
)
from minivapo.passes import (
    PRICE,
    attends_only,
    cheapest,
    first_response,
    in_columns,
    joined,
    plain_pass,
    responses_of,
    shared_passes,
    token_scores,
)
from minivapo.responses import pad_id
from minivapo.vapo import Config, gae

# ---------------------------------------------------------------------------------------------------------
# Learner
# ---------------------------------------------------------------------------------------------------------


class LocalLearner:
    """A network on one device with AdamW: forward passes and optimizer steps in micro-batches.

    Args:
        model: a causal LM (kind "actor") or a token classifier with one output (kind "critic").
        kind: which outputs it gives, see `minivapo.interfaces.Learner`.
        config: micro_batch, weight_decay, max_grad_norm are read.
        device: where the model lives; rollouts stay on the CPU and rows are moved as needed.
        autocast: compute in bfloat16 with fp32 weights.
        save_memory: compute activations again in the backward pass instead of keeping them, and keep no
            gradients between steps. The same numbers, about a third slower.

    Raises:
        UserError: save_memory is not possible with this model.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: Literal["actor", "critic"],
        config: Config,
        device: str = "cpu",
        autocast: bool = False,
        save_memory: bool = False,
    ) -> None:
        self.model: Any = model.to(device)  # a transformers model: more than nn.Module says
        self.kind, self.config, self.device = kind, config, device
        self.autocast, self.save_memory = autocast, save_memory
        self.dtype = torch.bfloat16 if autocast else torch.float32
        self.version = 0
        self.price = PRICE if torch.device(device).type == "cpu" else math.inf  # a GPU is filled by one large pass
        # transformers gives up the keys and values of prompts where it recomputes activations.
        self.shares = not save_memory and attends_only(self.model)
        self.model.eval()
        if kind == "critic" and autocast:
            score_in_float32(self.model)
        if save_memory:
            if not self.model.supports_gradient_checkpointing:
                raise UserError(f"{type(model).__name__} cannot recompute activations: leave save_memory off.")
            recompute_activations(self.model)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=True
        )

    def precision(self) -> torch.autocast:
        """What `autocast` asks for. The outermost keeps the weights that it has cast until its end."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.autocast)

    def micro_batches(self, rollout: Rollout) -> list[list[int]]:
        """Rows sorted by length and cut into micro-batches: little padding, and any order is the same sum."""
        order = torch.argsort(rollout.totals, stable=True).tolist()
        return [order[i : i + self.config.micro_batch] for i in range(0, len(order), self.config.micro_batch)]

    def outputs(self, rows: Rollout, entropy: bool) -> Outputs:
        """Forward pass over one micro-batch; tensors [rows, time] on the device.

        Log-probs and entropies stand on response tokens. Where it pays, a prompt is computed once for its responses,
        and rows of like lengths apart from the others.
        """
        pieces, prompts = cheapest(rows, self.price, self.shares)
        whole = self.kind == "critic"
        with self.precision():
            if prompts:
                passes = shared_passes(self.model, rows, pieces, prompts, self.device, whole)
            else:
                passes = (plain_pass(self.model, rows.rows(piece), self.device, whole) for piece in pieces)
            found = [self.read(x, rows.rows(p), entropy, bool(prompts)) for p, x in zip(pieces, passes, strict=True)]
        return joined(found, pieces, rows)

    def read(self, logits: Tensor, rows: Rollout, entropy: bool, shared: bool) -> Outputs:
        """What a pass over these rows says, in their columns [rows, time]."""
        if self.kind == "critic":
            scores = logits[..., 0]
            return {"values": shift(scores), "scores": scores}
        if shared:
            scored = token_scores(logits, responses_of(rows).to(self.device), entropy)
            return {name: in_columns(x, rows) for name, x in scored.items()}
        first = first_response(rows)
        scored = token_scores(logits, rows.tokens[:, first:].to(self.device), entropy)
        return {name: nn.functional.pad(x, (first, 0)) for name, x in scored.items()}

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        return f"{type(self.model).__name__}({size:,} parameters, {self.version} updates, {self.device})"

    @torch.no_grad()
    def forward(self, rollout: Rollout, training: bool = False) -> Outputs:
        """See `minivapo.interfaces.Learner.forward`; `training` has the network in the mode of `step`."""
        result: Outputs = {}
        if training and self.save_memory:
            self.model.train()
        with self.precision():
            for index in self.micro_batches(rollout):
                rows = rollout.rows(index)
                for name, x in self.outputs(rows, entropy=True).items():
                    whole = result.setdefault(name, torch.zeros(rollout.tokens.shape, dtype=x.dtype))
                    whole[index, : x.shape[1]] = x.cpu()
        self.model.eval()
        return result

    def step(self, rollout: Rollout, loss_fn: LossFn, lr: float) -> tuple[Metrics, Metrics]:
        """See `minivapo.interfaces.Learner.step`."""
        sums: dict[str, Tensor] = {}
        maxima: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        if self.save_memory:
            self.model.train()  # transformers recomputes in training mode alone; there is no dropout
        for index in self.micro_batches(rollout):
            rows = rollout.rows(index)
            outputs = {k: x.cpu() if x.device.type != "cpu" else x for k, x in self.outputs(rows, False).items()}
            loss, part_sums, part_maxima = loss_fn(outputs, rows)
            loss.backward()
            for name, x in part_sums.items():
                sums[name] = sums.get(name, torch.zeros(())) + x
            for name, x in part_maxima.items():
                maxima[name] = torch.maximum(maxima[name], x) if name in maxima else x
        if self.save_memory:
            self.model.eval()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        numbers = {name: float(x) for name, x in sums.items()}
        peaks = {**{name: float(x) for name, x in maxima.items()}, "grad_norm": float(norm)}
        check_finite(self.kind, numbers.get("loss", 0.0), peaks["grad_norm"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.save_memory:
            self.optimizer.zero_grad(set_to_none=True)
        self.version += 1
        return numbers, peaks

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `minivapo.interfaces.Learner.weights`."""
        yield from ((name, p.detach()) for name, p in self.model.named_parameters())

    def save(self, folder: Path) -> None:
        """Writes a transformers folder (safetensors) and, beside the weights, `optimizer.safetensors`."""
        self.model.save_pretrained(folder)
        tensors = {}
        for name, parameter in self.model.named_parameters():
            for key, x in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{name}|{key}"] = x.contiguous()
        save_file(tensors, folder / "optimizer.safetensors")
        (folder / "learner.json").write_text(json.dumps({"version": self.version}))

    def load(self, folder: Path) -> None:
        """Takes back what `save` wrote; bit for bit the same learner."""
        load = load_actor if self.kind == "actor" else load_critic
        dtype = next(self.model.parameters()).dtype
        self.model.load_state_dict(load(folder, dtype=dtype).state_dict())
        self.optimizer.state.clear()
        tensors = load_file(folder / "optimizer.safetensors")
        parameters = dict(self.model.named_parameters())
        for key, x in tensors.items():
            name, _, part = key.rpartition("|")
            self.optimizer.state[parameters[name]][part] = x.to(self.device)
        self.version = json.loads((folder / "learner.json").read_text())["version"]


def shift(scores: Tensor) -> Tensor:
    """Moves outputs after token t to column t + 1: V(s_t) is what the critic says after token t − 1."""
    return torch.cat([torch.zeros_like(scores[:, :1]), scores[:, :-1]], 1)


def check_finite(name: str, loss: float, grad_norm: float) -> None:
    """Refuses a step whose loss or gradient is NaN or infinite.

    Raises:
        NonFiniteError: with the offending numbers.
    """
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise NonFiniteError(
            f"{name}: loss {loss}, gradient norm {grad_norm}; the step was refused. Lower {name}_lr, or resume from "
            "the last checkpoint with another seed."
        )


# ---------------------------------------------------------------------------------------------------------
# Sampler
# ---------------------------------------------------------------------------------------------------------


class LocalSampler:
    """Batched sampling with a KV cache; it shares the actor's module, so `sync` copies nothing.

    Rows of a batch that have ended are dropped once they are a quarter of it, and sampling stops when all
    have. The samples of one prompt share its prefill.

    Args:
        tokenizer: for the padding id and, with stop strings, the text so far.
        max_new_tokens: length limit of a response.
        stop: strings that end a response besides EOS.
        batch: at most so many rows are sampled at once.
    """

    def __init__(self, tokenizer: Any, max_new_tokens: int, stop: Sequence[str] = (), batch: int = 256) -> None:
        self.tokenizer, self.max_new_tokens, self.stop, self.batch = tokenizer, max_new_tokens, tuple(stop), batch
        self.model: Any = None
        self.version = -1

    def sync(self, actor: Learner) -> None:
        """See `minivapo.interfaces.Sampler.sync`."""
        assert isinstance(actor, LocalLearner)
        self.model, self.version, self.learner = actor.model, actor.version, actor
        self.ends = torch.tensor(stop_ids(actor.model, self.tokenizer), device=actor.device)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        seed: int,
        version: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[Sample]:
        """See `minivapo.interfaces.Sampler.generate`."""
        if version != self.version:
            raise RuntimeError(f"the sampler holds weights of version {self.version}, not {version}: call sync first")
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding within a batch
        result: list[list[Sample]] = [[] for _ in prompts]
        size = max(1, self.batch // n)
        for start in range(0, len(order), size):
            part = order[start : start + size]
            for first in range(0, n, self.batch):  # more than one turn only where a single prompt has too many
                rows, key = min(n - first, self.batch), (start, first) if first else (start,)
                generator = torch.Generator(self.ends.device).manual_seed(derive_seed(seed, *key))
                with self.learner.precision():  # around all tokens: each would cast the weights anew
                    samples = self.sample_batch([prompts[i] for i in part], rows, generator, temperature, top_p)
                for j, i in enumerate(part):
                    result[i] += samples[j * rows : (j + 1) * rows]
        return [sample for group in result for sample in group]

    @torch.no_grad()
    def sample_batch(
        self, prompts: list[Sequence[int]], n: int, generator: torch.Generator, temperature: float, top_p: float
    ) -> list[Sample]:
        """One batch: prefill each prompt once, repeat it n times, decode until all rows have ended."""
        device = self.ends.device
        width, rows = max(map(len, prompts)), len(prompts) * n
        tokens = torch.full((len(prompts), width), pad_id(self.tokenizer), device=device)
        attention = torch.zeros(len(prompts), width + self.max_new_tokens, dtype=torch.long, device=device)
        attention[:, width:] = 1
        for i, prompt in enumerate(prompts):  # left padding, so that every row decodes at the same column
            tokens[i, width - len(prompt) :] = torch.tensor(prompt, device=device)
            attention[i, width - len(prompt) : width] = 1
        cache = make_cache(self.model)
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        logits = self.decode(tokens, attention[:, :width], positions[:, :width], cache)
        if logits.isnan().any():
            text = "sampler: the policy's logits are NaN, its weights are not finite; resume from an earlier checkpoint"
            raise NonFiniteError(f"{text} with a lower actor_lr or another seed.")
        cache.reorder_cache(torch.arange(len(prompts), device=device).repeat_interleave(n))
        logits, attention, positions = (x.repeat_interleave(n, 0) for x in (logits, attention, positions))

        out = torch.zeros(rows, self.max_new_tokens, dtype=torch.long, device=device)
        logprobs = torch.zeros(rows, self.max_new_tokens, device=device)
        lengths = torch.full((rows,), self.max_new_tokens, device=device)
        ended = torch.zeros(rows, dtype=torch.bool, device=device)
        active = torch.arange(rows, device=device)  # row of `out` for each row still in the cache
        for t in range(self.max_new_tokens):
            picked, picked_logprobs = pick(logits, generator, temperature, top_p)
            out[active, t], logprobs[active, t] = picked, picked_logprobs
            end = (picked[:, None] == self.ends).any(1) | self.at_stop_string(out, active, t)
            fresh = active[end & ~ended[active]]
            lengths[fresh], ended[fresh] = t + 1, True
            keep = (~ended[active]).nonzero()[:, 0]
            if len(keep) == 0:
                break
            if len(keep) < 0.75 * len(active):
                active, picked, attention, positions = active[keep], picked[keep], attention[keep], positions[keep]
                cache.reorder_cache(keep)
            column = width + t
            logits = self.decode(picked[:, None], attention[:, : column + 1], positions[:, column : column + 1], cache)
        out, logprobs, lengths, ended = (x.cpu() for x in (out, logprobs, lengths, ended))
        return [
            Sample(out[i, :length].tolist(), logprobs[i, :length].tolist(), bool(ended[i]))
            for i, length in enumerate(lengths.tolist())
        ]

    def decode(self, tokens: Tensor, attention: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Logits [rows, vocabulary] in fp32 after the last of these tokens."""
        known = arguments(type(self.model), cache, attention, positions)
        output = self.model(input_ids=tokens, use_cache=True, logits_to_keep=1, **known)
        return output.logits[:, -1].float()

    def at_stop_string(self, out: Tensor, active: Tensor, t: int) -> Tensor:
        """Which active rows end in a stop string; looks at the last few tokens only."""
        if not self.stop:
            return torch.zeros(len(active), dtype=torch.bool, device=out.device)
        reach = max(len(s.encode()) for s in self.stop) + 4  # a token is a byte at least; 4 for a cut first character
        tails = self.tokenizer.batch_decode(out[active, max(0, t + 1 - reach) : t + 1])
        hit = [any(s in tail for s in self.stop) for tail in tails]
        return torch.tensor(hit, device=out.device)


def pick(logits: Tensor, generator: torch.Generator, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token for each row of logits, and its log-probability under the *untempered, untruncated* policy.

    The learner's ratio compares the policy with itself, so training samples at temperature 1 and top-p 1;
    other settings are for evaluation.
    """
    logprobs = torch.log_softmax(logits, -1)
    if temperature == 0:
        picked = logits.argmax(-1, keepdim=True)
        return picked[:, 0], logprobs.gather(-1, picked)[:, 0]
    probs = logprobs.exp() if temperature == 1.0 else torch.softmax(logits / temperature, -1)
    if top_p < 1:
        probs = nucleus(probs, top_p)
    picked = torch.multinomial(probs, 1, generator=generator)
    return picked[:, 0], logprobs.gather(-1, picked)[:, 0]


def nucleus(probs: Tensor, top_p: float, few: int = 256) -> Tensor:
    """Probabilities [rows, vocabulary] with 0 for all but the most likely tokens, up to the one that crosses top_p.

    Looks at the `few` most likely tokens first, and at 16 times as many in rows where these do not reach top_p: sorting
    a whole vocabulary takes longer than the network does.
    """
    ordered, index = probs.topk(min(few, probs.shape[-1]), -1)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(probs).scatter(-1, index, ordered.masked_fill(before >= top_p, 0))
    short = (before[:, -1] + ordered[:, -1] < top_p) & (few < probs.shape[-1])
    if short.any():
        kept[short] = nucleus(probs[short], top_p, 16 * few)
    return kept


# ---------------------------------------------------------------------------------------------------------
# Engine
# ---------------------------------------------------------------------------------------------------------


class LocalEngine:
    """Actor, critic and sampler on one device, see `minivapo.interfaces.Engine`.

    Args:
        model: transformers folder or hub name of the policy.
        config: the run's configuration.
        stop: the task's stop strings.
        device: "cpu", "cuda", "mps".
        critic: transformers folder or hub name that the critic starts from, if not the policy's.
        reference: the policy that kl_coef holds the actor to, if not the model it starts from: that of a resumed run.
        autocast: bfloat16 compute with fp32 weights; for GPUs, and processors that multiply in it.
        save_memory: see `LocalLearner`.
        sample_batch: responses sampled at once; fewer need less memory for their KV cache.

    Raises:
        UserError: a model cannot be loaded, or does not fit the tokenizer or the configured lengths.
    """

    def __init__(
        self,
        model: str | Path,
        config: Config,
        *,
        stop: Sequence[str] = (),
        device: str = "cpu",
        critic: str | Path | None = None,
        reference: str | Path | None = None,
        autocast: bool = False,
        save_memory: bool = False,
        sample_batch: int = 256,
    ) -> None:
        if sample_batch < 1:
            raise UserError(f"sample_batch is {sample_batch}; it must be at least 1.")
        self.world = World()
        self.gae: Gae = gae
        self.config = config
        self.progress = Progress()
        self.rollout: Rollout | None = None
        self.evaluated: Sequence[Any] = ()
        self.tokenizer = load_tokenizer(model)
        lengths = (config.max_prompt_tokens, config.max_new_tokens)
        check_fit(load_shape(model), model, self.tokenizer, *lengths)
        self.actor = LocalLearner(load_actor(model), "actor", config, device, autocast, save_memory)
        self.critic: Learner | None = None
        if config.advantage == "gae":
            start = critic_source(config.critic_init, model, critic)
            if start != model:
                check_same_vocabulary(self.tokenizer, start)
            check_fit(load_shape(start, "critic"), start, self.tokenizer, *lengths)
            self.critic = LocalLearner(load_critic(start, config.seed), "critic", config, device, autocast, save_memory)
        self.reference = None
        if config.kl_coef:
            self.reference = LocalLearner(load_actor(reference or model), "actor", config, device, autocast)
        self.sampler = LocalSampler(self.tokenizer, config.max_new_tokens, stop, sample_batch)

    def __repr__(self) -> str:
        return f"LocalEngine(actor={self.actor}, critic={self.critic}, step={self.progress.step})"

    def balance(self, rollout: Rollout, mini_batch: int) -> Rollout:
        """The rollout as it is: there is nobody to share the work with."""
        return rollout

    def metrics(self) -> Metrics:
        """Nothing to add: one device has no stragglers."""
        return {}

    def save(self, folder: Path) -> None:
        """Writes actor and critic as transformers folders, their optimizers, and the progress."""
        for name in ("actor", "critic"):
            learner = getattr(self, name)
            if learner is not None:
                learner.save(folder / name)
        self.tokenizer.save_pretrained(folder / "actor")
        (folder / "progress.json").write_text(json.dumps(dataclasses.asdict(self.progress)))

    def load(self, folder: Path) -> None:
        """Takes back what `save` wrote."""
        for name in ("actor", "critic"):
            learner = getattr(self, name)
            if learner is not None:
                learner.load(folder / name)
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))
