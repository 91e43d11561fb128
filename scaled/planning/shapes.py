"""Shapes of decoder-only transformers, and what follows from them: parameters, FLOPs, activation bytes.

Parameters are counted, not estimated: the model is built on the meta device (no memory, under a second for
32B) and its tensors are summed. FLOPs and activations are formulas; `benchmarks/plan_check.py` holds them
against torch's own counters.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minivapo.interfaces import UserError
from minivapo.loading import hub_answers

_QWEN = {"model_type": "qwen2", "rms_norm_eps": 1e-6}
KNOWN: dict[str, dict[str, Any]] = {
    # Facts of the published config.json files of Qwen/Qwen2.5-<size>, so that a plan needs no network.
    "Qwen2.5-0.5B": _QWEN
    | {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-1.5B": _QWEN
    | {
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-3B": _QWEN
    | {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-7B": _QWEN
    | {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-14B": _QWEN
    | {
        "hidden_size": 5120,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "intermediate_size": 13824,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-32B": _QWEN
    | {
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "intermediate_size": 27648,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class Shape:
    """One model, actor or critic. Sizes in elements, parameters in numbers of weights."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    """Outputs of the head: the vocabulary, or 1 for a critic."""
    parameters: int
    """All weights, tied ones once."""
    layer_parameters: int
    """Weights of one decoder layer."""
    embedding_parameters: int
    """Weights of the input embedding."""
    matmul_parameters: int
    """Weights that every token is multiplied with: all matrices of the layers, and the head."""
    head_parameters: int
    """Weights of the output head, whether tied to the embedding or not."""
    tied: bool
    """Whether the head is the embedding."""

    @property
    def largest_piece(self) -> int:
        """Weights of the largest module that ZeRO-3 gathers at once: a layer, the embedding or the head."""
        return max(self.layer_parameters, self.embedding_parameters, self.head_parameters)

    @property
    def kv_elements(self) -> int:
        """Elements of the KV cache for one token: key and value in every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def model_config(model: str | Path) -> Any:
    """A transformers config from a folder with config.json, a known name such as `Qwen/Qwen2.5-7B`, or the hub.

    Base, instruct and math variants of a known size share its shape, so `Qwen/Qwen2.5-Math-7B` is known too.

    Raises:
        UserError: none of them; names the known ones.
    """
    from transformers import AutoConfig

    path = Path(model)
    if path.suffix == ".json":
        path = path.parent
    if (path / "config.json").exists():
        text = json.loads((path / "config.json").read_text())
        return AutoConfig.for_model(**({"model_type": "qwen2"} | text))
    name = str(model).rpartition("/")[2]
    for variant in ("-Instruct", "-Math", "-Coder", "-Base"):
        name = name.replace(variant, "")
    if name in KNOWN:
        return AutoConfig.for_model(**KNOWN[name])
    try:  # the hub, or what is left of it in the cache
        return AutoConfig.from_pretrained(str(model), local_files_only=not hub_answers(str(model)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no shape known for '{model}', and the hub is not in reach: give a folder with config.json, or one of "
            f"{', '.join(KNOWN)} (with or without a leading 'Qwen/')."
        ) from error


@functools.lru_cache(maxsize=32)
def shape_of(model: str, kind: str = "actor") -> Shape:
    """Counts a model on the meta device.

    Args:
        model: see `model_config`.
        kind: "actor" (causal LM) or "critic" (the same trunk with one output for each token).
    """
    return count(model_config(model), kind, str(model).rpartition("/")[2])


def count(config: Any, kind: str = "actor", name: str = "") -> Shape:
    """Shape of a transformers config; see `shape_of`.

    Raises:
        UserError: the architecture is not like Llama's, whose layers the formulas describe.
    """
    from transformers import AutoModelForCausalLM

    from minivapo.critics import critic_class

    if kind == "critic":
        config.num_labels = 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config) if kind == "actor" else critic_class(type(config))(config)
    model.tie_weights()
    trunk = model.base_model
    head = model.get_output_embeddings() if kind == "actor" else getattr(model, "score", None)
    if head is None or not hasattr(trunk, "layers"):
        raise UserError(f"no plan for models of type '{config.model_type}': only for Llama-like ones, such as Qwen2.")
    layer = trunk.layers[0]
    matrices = sum(p.numel() for layer in trunk.layers for p in layer.parameters() if p.ndim == 2)
    heads = config.num_attention_heads
    return Shape(
        name=name or config.model_type,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size if kind == "actor" else 1,
        parameters=sum(p.numel() for p in model.parameters()),  # parameters() lists a tied weight once
        layer_parameters=sum(p.numel() for p in layer.parameters()),
        embedding_parameters=sum(p.numel() for p in model.get_input_embeddings().parameters()),
        matmul_parameters=matrices + head.weight.numel(),
        head_parameters=sum(p.numel() for p in head.parameters()),
        tied=head.weight is model.get_input_embeddings().weight,
    )


def forward_flops(shape: Shape, tokens: float, squares: float) -> float:
    """FLOPs of a forward pass; a backward pass is twice that.

    FLOPs = 2 · N_matmul · Σ s + 2 · L · heads · head_dim · Σ s²: every matrix weight is one multiply-add for
    each token; causal attention over s tokens does Q Kᵀ and P V (2 · 2 · s² · heads · head_dim) on half of
    the square.

    Args:
        shape: the model.
        tokens: Σ s over sequences, in tokens.
        squares: Σ s² over sequences, in tokens².
    """
    return 2.0 * shape.matmul_parameters * tokens + 2.0 * shape.layers * shape.heads * shape.head_dim * squares


def layer_activation_bytes(shape: Shape, tokens: float, width: int) -> float:
    """Bytes that one decoder layer keeps for its backward pass, with a fused attention kernel.

    Counted tensor by tensor for the Llama/Qwen layer of transformers; `width` bytes per element:

    - 2 norms: each keeps the fp32 copy of its input (4 h; in fp32 that is the residual stream itself), its
      normalised input (width h, where the learned scale multiplies) and its output (width h, read by the
      projections), and 1/rms in fp32;
    - attention: q, k, v after rotation, the output, and the fp32 log-sum-exp for each head;
    - MLP: gate, silu(gate), up and their product.

    Args:
        shape: the model.
        tokens: tokens of the micro-batch.
        width: bytes of an element: 2 for bf16, 4 for fp32.
    """
    norm = 2 * ((4 if width < 4 else 0) + 2 * width) * shape.hidden + 2 * 4
    residual = shape.hidden * width * (2 if width == 4 else 0)  # fp32: the norms keep the stream itself
    q = shape.heads * shape.head_dim
    attention = (2 * q + 2 * shape.kv_heads * shape.head_dim) * width + 4 * shape.heads
    mlp = 4 * shape.intermediate * width
    return tokens * (norm + residual + attention + mlp)


def layer_workspace_bytes(shape: Shape, tokens: float, width: int, backward: bool) -> float:
    """Bytes that a layer needs in passing, at its widest moment, the MLP.

    Forward without gradient: gate, silu(gate), up, and the stream with what is made of it on the way.
    Backward, on top of what `layer_activation_bytes` keeps: the gradients of gate, silu(gate) and up, less the
    product that the down projection has given back by then, and the stream's gradient.
    """
    if backward:
        return float(tokens * width * (2 * shape.intermediate + shape.hidden))
    return float(tokens * width * (3 * shape.intermediate + 4 * shape.hidden))


def outer_activation_bytes(shape: Shape, tokens: float, width: int) -> float:
    """Bytes kept for backward outside the layers: embedding output and final norm; a critic's fp32 head input."""
    norm = (8 if width == 2 else 12) * shape.hidden
    return float(tokens * (norm + (4 * shape.hidden if shape.vocab == 1 else 0)))
