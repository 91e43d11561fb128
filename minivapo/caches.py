"""What a model remembers while it samples on one device: keys and values, or the state that it keeps instead."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class BufferedLayer(DynamicLayer):
    """A KV cache that writes into spare room instead of copying everything for each token."""

    room = 64  # tokens to grow by, at least

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends one or more tokens; returns the views of all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [key_states[:, :, :0], value_states[:, :, :0]]
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if end > self.buffers[0].shape[2]:
            grow = max(self.room, end - start, start // 2)
            self.buffers = [nn.functional.pad(x[:, :, :start], (0, 0, 0, grow)) for x in self.buffers]
        for buffer, x in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = x
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes these rows, in this order; one that is named twice is there twice."""
        if not self.is_initialized:
            return
        length = self.get_seq_length()
        self.buffers = [x.index_select(0, beam_idx) for x in self.buffers]
        self.keys, self.values = (x[:, :, :length] for x in self.buffers)


PLAIN = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers that remember keys and values and nothing else."""


def layers_of(model: Any) -> list[Any]:
    """Empty layers of the cache that transformers has for a model; none where it lacks one of their kinds."""
    try:
        return DynamicCache(config=model.config).layers
    except KeyError:
        return []


def make_cache(model: Any) -> Any:
    """An empty `Cache` for a model: the layers that transformers has for it, those of plain attention made faster.

    A sliding window's layer becomes a whole one, for the mask hides what is outside the window.
    """
    layers = layers_of(model)
    if not layers:  # the model must make do with keys and values
        return Cache(layer_class_to_replicate=BufferedLayer)
    return Cache(layers=[BufferedLayer() if type(layer) in PLAIN else layer for layer in layers])


def arguments(model_class: type, cache: Cache, attention: Tensor, positions: Tensor) -> dict[str, Any]:
    """What `forward` of such a model is told of the past, by its names.

    Args:
        model_class: of the model.
        cache: what it remembers.
        attention: [rows, tokens so far], 1 where there is no padding.
        positions: [rows, new tokens].
    """
    name, has_positions = names(model_class)
    # A state alone wants a mask of the new tokens; older versions show it by the name, newer ones by the layers.
    if name == "cache_params" or (cache.layers and not any(isinstance(x, DynamicLayer) for x in cache.layers)):
        attention = attention[:, -positions.shape[1] :]
    return {name: cache, "attention_mask": attention} | ({"position_ids": positions} if has_positions else {})


@functools.cache
def names(model_class: type) -> tuple[str, bool]:
    """What `forward` of such a model calls its cache, and whether it is told positions: with ALiBi it is not."""
    known = inspect.signature(model_class.forward).parameters
    # transformers renamed the second to the first within the versions that pyproject.toml allows.
    found = next((name for name in ("cache", "past_key_values", "cache_params") if name in known), "past_key_values")
    return found, "position_ids" in known
