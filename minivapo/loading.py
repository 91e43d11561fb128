"""Models and tokenizers from folders, run folders and hub names, and whether they fit; for both engines."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import torch
import transformers
from torch import nn

from minivapo.critics import TokenScores, critic_class, value_head
from minivapo.interfaces import UserError
from minivapo.pretrained import PACKAGES, pretrained_folder


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a transformers folder, run folder or hub name.

    Raises:
        UserError: it cannot be loaded, or has no EOS.
    """
    model = locate(model, "actor")
    with explain_loading(model, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {model} has no EOS token; set eos_token in its tokenizer_config.json.")
    return tokenizer


def load_actor(model: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A causal LM from a transformers folder, run folder or hub name, without dropout.

    Raises:
        UserError: there is no such model, or its file lacks weights.
    """
    model = locate(model, "actor")
    with explain_loading(model, "model"):
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    policy, info = loaded
    refuse_foreign(policy, info, model)
    missing = absent(info)
    if missing:
        raise UserError(
            f"{model} cannot be a policy: its weight files lack {len(missing)} weights of {type(policy).__name__} or "
            f"have them in another shape ({', '.join(missing[:3])}); they would be random. Give the whole model"
            f"{hint(info)}."
        )
    return without_dropout(policy)


def random_devices() -> list[int]:
    """The GPU whose random state this process may change; asked for all of them, torch warns on every rank."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def load_critic(model: str | Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A token-classification model with one output from any checkpoint: policy, reward model or critic.

    Choice: what the checkpoint's head lacks starts at zero, so that V = 0 everywhere at first when all of it
    does. A sequence classifier's head has a weight but no bias, so it keeps its scores. What was initialised
    anew is logged as a warning.

    Raises:
        UserError: there is no such model, or the checkpoint lacks weights below the head.
    """
    model = locate(model, "critic")
    with explain_loading(model, "critic"), torch.random.fork_rng(random_devices()):
        torch.manual_seed(seed)
        shape = transformers.AutoConfig.from_pretrained(model)
        shape.num_labels = 1
        critic, info = critic_class(type(shape)).from_pretrained(
            model, config=shape, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    refuse_foreign(critic, info, model)
    if issubclass(type(critic), TokenScores):
        critic.fill_buffers()
    without_dropout(critic)
    fresh = absent(info)
    head = value_head(critic)
    heads = {name for name, m in critic.named_modules() if m is head}
    body = [key for key in fresh if key.rpartition(".")[0] not in heads]
    if body:
        raise UserError(
            f"{model} cannot start a critic: its checkpoint lacks {len(body)} weights below the head "
            f"({', '.join(body[:3])}); give a policy, reward model or critic of the kind that its config.json names"
            f"{hint(info)}."
        )
    if fresh:
        text = "critic from %s: %s start at 0 (absent from the checkpoint, or of another shape)"
        logging.getLogger(__name__).warning(text, model, ", ".join(fresh))
    for name, parameter in critic.named_parameters():
        if name in fresh:  # ZeRO-3 keeps this rank's shard in ds_tensor
            nn.init.zeros_(getattr(parameter, "ds_tensor", parameter))
    return critic


def absent(info: dict[str, Any]) -> list[str]:
    """Weights that a load left random, by what transformers says of it; a tied head is not one of them."""
    return sorted({*info["missing_keys"], *(str(k[0] if isinstance(k, tuple) else k) for k in info["mismatched_keys"])})


def hint(info: dict[str, Any]) -> str:
    """Where the weights may be, by the names in the file that the model does not know."""
    for prefix, what in (("_orig_mod.", "torch.compile"), ("module.", "a wrapper for data parallelism")):
        if any(key.startswith(prefix) for key in info["unexpected_keys"]):
            return f"; the names in its file begin with {prefix}, as {what} leaves them: take that off"
    return ""


def refuse_foreign(loaded: Any, info: dict[str, Any], model: str) -> None:
    """Refuses a file that holds more than was asked for: another kind of model, more layers, an adapter.

    Raises:
        UserError: says what is left over.
    """
    if getattr(loaded, "_hf_peft_config_loaded", False):
        raise UserError(ADAPTER.format(model))
    left = sorted(info["unexpected_keys"])
    layers = getattr(loaded.config.get_text_config(), "num_hidden_layers", None)
    numbers = [int(found[1]) for key in left if (found := re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", key))]
    if layers is not None and max(numbers, default=-1) >= layers:
        raise UserError(
            f"{model} has weights of layer {max(numbers)}, counted from 0, but num_hidden_layers in its config.json is "
            f"{layers}: a part of the model would be left out. Mend config.json."
        )
    heads = [key for key in left if key.split(".")[0] in ("score", "classifier", "v_head", "value_head")]
    if heads and loaded.get_output_embeddings() is not None:
        raise UserError(
            f"{model} is a reward model or critic ({heads[0]}), not a policy: give it as --critic or --critic-init, "
            "and a language model as --model."
        )


ADAPTER = (
    "{} is a LoRA adapter, of which nothing would be trained: merge it into its base model first "
    "(peft: AutoPeftModelForCausalLM.from_pretrained(…).merge_and_unload().save_pretrained(…))."
)


def without_dropout(model: Any) -> Any:
    """Switches dropout and jitter off, in training mode too: two passes over the same tokens must agree."""
    for owner in (*model.modules(), model.config, model.config.get_text_config()):
        if isinstance(owner, nn.Dropout):  # transformers gives a token classifier 10 % of its own
            owner.p = 0.0
        for name, value in vars(owner).items():  # OPT's dropout, MPT's attn_dropout_p, Mixtral's jitter_noise, …
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(owner, name, 0.0)
    return model


def recompute_activations(model: Any) -> None:
    """Keeps no activations within a layer: the backward pass computes them again."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def critic_source(critic_init: str, model: str | Path, critic: str | Path | None = None) -> str | Path:
    """What a critic starts from.

    Args:
        critic_init: see `minivapo.vapo.Config`.
        model: the policy.
        critic: named besides; it comes first.

    Raises:
        UserError: the policy's folder comes with no critic.
    """
    if critic or critic_init in ("policy", "reward-model"):
        return critic or model
    if critic_init != "shipped":
        return critic_init
    if not (Path(model) / "critic").exists():
        raise UserError(f"{model} comes with no critic: use --critic-init policy and --value-pretrain-steps.")
    return Path(model) / "critic"


def locate(model: str | Path, part: Literal["actor", "critic"]) -> str:
    """The transformers folder or hub name meant; a run folder stands for that part of its checkpoint.

    A short name of `minivapo.pretrained` stands for a folder in the user's cache, where it is made if it is not there.

    Raises:
        UserError: it reads like a path, and there is no such folder, or it holds an adapter; or a packaged model cannot
            be had.
    """
    path = Path(model).expanduser()
    if path.exists():
        if (path / "adapter_config.json").exists():
            raise UserError(ADAPTER.format(model))
        inside = path / "checkpoint" / part
        return str(inside if inside.is_dir() else path)
    name = str(model)
    if name in PACKAGES:
        return str(pretrained_folder(name))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"there is no folder '{model}'; give a transformers folder, a run folder or a hub name.")
    return name


@functools.cache
def hub_answers(name: str) -> bool:
    """Whether the hub has such a model; asked once, where `from_pretrained` would try again for a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        huggingface_hub.HfApi().model_info(name, timeout=10)
    except Exception:  # no network, no such model, no permission: its cache may still have it
        return False
    return True


@contextlib.contextmanager
def explain_loading(model: str | Path, what: str) -> Iterator[None]:
    """Turns the many ways in which a checkpoint fails to load into one message; our own errors stay as they are."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    was_offline = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = was_offline or not (Path(model).exists() or hub_answers(str(model)))
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_ours(error):
            raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if Path(model).exists():
            text = f"it is not a complete transformers folder ({type(error).__name__}: {reason})"
        elif hub_answers(str(model)):
            text = f"{type(error).__name__}: {reason}"
        else:
            text = "there is no such folder, the hub cannot be reached or has no such model, and it is not in its cache"
        raise UserError(
            f"cannot load the {what} from '{model}': {text}. Give a folder with config.json, model.safetensors and "
            "tokenizer files, or a hub name and a network."
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        huggingface_hub.constants.HF_HUB_OFFLINE = was_offline


def is_ours(error: Exception) -> bool:
    """Whether our code raised it, or gave to torch what it does not take; the rest is what transformers found."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    rooms = [name.partition(".")[0] for name in names]
    return next(room for room in reversed(rooms) if room in ("minivapo", "transformers")) == "minivapo"


def stop_ids(model: nn.Module | str | Path, tokenizer: Any) -> list[int]:
    """Every token id that ends a response: the tokenizer's EOS, those of the model's generation config, and
    the one that closes a turn of the tokenizer's chat template (a base model's EOS is often another).

    Args:
        model: a loaded model, or the transformers folder or hub name of one whose weights are not loaded yet.
        tokenizer: the policy's.
    """
    # Choice: all of them end a response under either template: a base model writes its EOS, a tuned one ends its turn.
    generation = (
        generation_config(model) if isinstance(model, str | Path) else getattr(model, "generation_config", None)
    )
    extra = getattr(generation, "eos_token_id", None)
    extra = [] if extra is None else [extra] if isinstance(extra, int) else list(extra)
    turn = turn_end_id(tokenizer)
    return sorted({tokenizer.eos_token_id, *extra, *([] if turn is None else [turn])})


def generation_config(model: str | Path) -> transformers.GenerationConfig:
    """What a loaded model would have as its generation config; made from config.json where the model has none."""
    try:
        return transformers.GenerationConfig.from_pretrained(model)
    except OSError:
        return transformers.GenerationConfig.from_model_config(transformers.AutoConfig.from_pretrained(model))


def turn_end_id(tokenizer: Any) -> int | None:
    """The special token that the chat template puts after the assistant's words, if there is one."""
    words = "minivapo"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # no chat template, or one that refuses these messages
        return None
    _, found, tail = text.rpartition(words)  # a template may alter the words, or leave them out
    ids = tokenizer(tail.lstrip(), add_special_tokens=False)["input_ids"] if found and tail.strip() else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}  # some are named in added_tokens alone
    return ids[0] if ids and ids[0] in special else None


def load_shape(model: str | Path, part: Literal["actor", "critic"] = "actor") -> Any:
    """The transformers config of a folder, run folder or hub name, without its weights.

    Raises:
        UserError: there is no such model.
    """
    model = locate(model, part)
    with explain_loading(model, "model"):
        return transformers.AutoConfig.from_pretrained(model)


def check_fit(shape: Any, name: str | Path, tokenizer: Any, max_prompt_tokens: int, max_new_tokens: int) -> None:
    """Refuses, before its weights load, a model with fewer embeddings than the tokenizer has tokens or a short context.

    Args:
        shape: the model's transformers config.
        name: what the user calls it.
        tokenizer: the policy's.
        max_prompt_tokens: longest prompt, in tokens.
        max_new_tokens: longest response, in tokens.

    Raises:
        UserError: it does not fit.
    """
    if len(tokenizer) > shape.vocab_size:
        raise UserError(
            f"the policy's tokenizer has {len(tokenizer)} tokens but {name} only {shape.vocab_size} embeddings: "
            "they do not belong together."
        )
    context = getattr(shape, "max_position_embeddings", None)
    need = max_prompt_tokens + max_new_tokens
    if context and need > context:
        raise UserError(
            f"max_prompt_tokens {max_prompt_tokens} + max_new_tokens {max_new_tokens} = {need} tokens, "
            f"but the context of {name} is {context}: lower one of them."
        )


def check_same_vocabulary(tokenizer: Any, critic: str | Path) -> None:
    """Refuses a critic that reads other tokens than the policy writes; one without tokenizer files is trusted.

    Raises:
        UserError: a token of the policy is another one there.
    """
    folder = locate(critic, "critic")
    if Path(folder).is_dir() and not list(Path(folder).glob("*token*")):
        return
    with explain_loading(folder, "critic's tokenizer"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    ours = tokenizer.get_vocab()
    wrong = next((token for token in sorted(ours) if theirs.get(token) != ours[token]), None)
    if wrong is not None:
        raise UserError(
            f"the critic {critic} has another vocabulary than the policy: token {wrong!r} is {theirs.get(wrong)} "
            f"there and {ours[wrong]} here. It may be smaller, but must share the tokenizer, as one family's models do."
        )
