"""Makes an embedded base model from nothing: a small Llama trained on a task's noisy demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from minivapo.interfaces import derive_seed
from minivapo.tasks.embedded import EmbeddedTask


def make_tokenizer(words: tuple[str, ...]) -> Any:
    """A tokenizer with one token per word.

    Raises:
        ValueError: a word stands there twice.
    """
    if len(set(words)) < len(words):
        raise ValueError(f"words: {sorted(w for w in set(words) if words.count(w) > 1)} stand there twice")
    vocabulary = {w: i for i, w in enumerate(("<pad>", "<bos>", "<eos>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def make_config(tokenizer: Any, width: int = 64, layers: int = 3) -> transformers.LlamaConfig:
    """A Llama of about 150,000 parameters.

    Llama and not Qwen2, whose folders transformers opens with a byte-level tokenizer whatever they say.
    Initialisation matters at this size: with a range of 0.02 the tables are not learned in thousands of
    steps, with 0.08 in hundreds.
    """
    return transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.08,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def demonstration_batch(
    task: EmbeddedTask, tokenizer: Any, size: int, key: tuple[object, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [size, time] of prompts with demonstrations, a mask of what is to be predicted, and lengths [size]."""
    rows = []
    for i in range(size):
        problem = task.draw(("base", *key, i), held_out=False)
        rng = np.random.default_rng(derive_seed("demonstration", *key, i))
        prompt = tokenizer(problem.prompt)["input_ids"]
        response = tokenizer.convert_tokens_to_ids(task.demonstrate(problem, rng))
        rows.append((prompt, [*response, tokenizer.eos_token_id]))
    width = max(len(p) + len(r) for p, r in rows)
    tokens = torch.full((size, width), tokenizer.pad_token_id)
    mask = torch.zeros(size, width)
    for i, (prompt, response) in enumerate(rows):
        tokens[i, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[i, len(prompt) : len(prompt) + len(response)] = 1
    return tokens, mask, torch.tensor([len(p) + len(r) for p, r in rows])


def make_base(
    task: EmbeddedTask,
    folder: Path,
    steps: int = 0,
    batch: int = 64,
    lr: float = 0.0,
    seed: int = 0,
    width: int = 0,
    layers: int = 0,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Path:
    """Trains a base model on noisy demonstrations of training problems and saves a transformers folder.

    Args:
        task: the embedded task.
        folder: where the model and its tokenizer go.
        steps, batch, lr: of supervised training with AdamW, cosine decay and a short warm-up; 0: as the task's recipe.
        seed: of the initial weights and the demonstrations.
        width, layers: size of the network; 0: as the task's recipe.
        progress: called after each step with (step, steps, loss in nats per token).
    """
    recipe = task.recipe
    steps, lr = steps or recipe.steps, lr or recipe.lr
    width, layers = width or recipe.width, layers or recipe.layers
    tokenizer = make_tokenizer(task.words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(make_config(tokenizer, width, layers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, min(50, steps // 10), steps)
    for step in range(steps):
        tokens, mask, lengths = demonstration_batch(task, tokenizer, batch, (seed, step))
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for rows in torch.argsort(lengths).split(batch // 8):  # rows of like length: little padding
            width = int(lengths[rows].max())
            inputs, wanted = tokens[rows, :width], mask[rows, 1:width].flatten()
            logits = model(input_ids=inputs).logits[:, :-1]
            nll = nn.functional.cross_entropy(logits.flatten(0, 1), inputs[:, 1:].flatten(), reduction="none")
            loss = (nll * wanted).sum() / mask.sum()
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress(step + 1, steps, total)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
