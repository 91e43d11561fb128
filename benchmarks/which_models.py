"""Which models work: the probe of `minivapo.probe` over families of transformers, at toy size, on both engines.

    python benchmarks/which_models.py      # docs/results/models.csv and docs/models.md; goes on where it stopped
    python benchmarks/which_models.py --only Llama OPT --out /tmp/models.csv --page /tmp/models.md

Every model is made here from its config, with random weights and sizes small enough for seconds on a CPU. The laptop's
engine is probed whole: sampler, actor and critic. Of the cluster's engine the learner's packed passes are, without
vLLM; where DeepSpeed is not installed that column stays empty.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minivapo.interfaces import Problem, Sample, UserError, make_rollout
from minivapo.local import LocalEngine
from minivapo.probe import compare_passes, probe, random_head, refuse, switches_at, told_as
from minivapo.vapo import Config

ROOT = Path(__file__).parents[1]
CONFIG = Config(max_prompt_tokens=60, max_new_tokens=20, micro_batch=6)
PROBLEMS = [
    Problem(text, "", text) for text in ("What is 3 + 4?", "Anna has 3 apples and buys 4 more.", "Solve x = 7.")
]

SHAPE = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
"""Heads of 32, for vLLM on the CPU; weights large enough that a wrong token changes the next."""

UNKNOWN = "left out"
"""For a size that a family's config does not take."""

WINDOW = {"sliding_window": 8, "use_sliding_window": True}
LINEAR = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_local_experts": 4}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_expand": 2}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # name of the family: (model_type, what its config needs beside SHAPE)
    "Llama": ("llama", {}),
    "Qwen 2, 2.5": ("qwen2", {}),
    "Qwen 3": ("qwen3", {}),
    "Qwen 3 MoE": ("qwen3_moe", EXPERTS),
    "Qwen 3.5": ("qwen3_5_text", LINEAR),
    "Qwen 3 Next": ("qwen3_next", {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 32}),
    "Gemma 2": ("gemma2", WINDOW),
    "Gemma 3": ("gemma3_text", WINDOW),
    "Phi 3": ("phi3", {}),
    "Phi 3 LongRoPE": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16,
                "original_max_position_embeddings": 32, "factor": 16.0,
            },
        },
    ),
    "Mistral": ("mistral", WINDOW),
    "Mixtral": ("mixtral", EXPERTS),
    "OLMo 2": ("olmo2", {}),
    "OLMo 3": ("olmo3", {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}),
    "SmolLM 3": ("smollm3", {}),
    "Granite": ("granite", {"logits_scaling": 2.0}),
    "Granite 4 hybrid": ("granitemoehybrid", {**EXPERTS, **MAMBA, "layer_types": ["mamba", "attention"],
                                              "shared_intermediate_size": 32}),
    "GPT-2": ("gpt2", {"n_embd": 64, "n_head": 2, "n_layer": 2, "n_positions": 512}),
    "GPT-NeoX": ("gpt_neox", {}),
    "Falcon": ("falcon", {"num_kv_heads": 1, "head_dim": UNKNOWN}),
    "Falcon H1": ("falcon_h1", {**MAMBA, "mamba_d_ssm": 128}),
    "BLOOM": ("bloom", {"n_layer": 2, "n_head": 2}),
    "OPT": ("opt", {"word_embed_proj_dim": 64, "ffn_dim": 96, "init_std": 0.2}),
    "MPT": ("mpt", {"d_model": 64, "n_heads": 2, "n_layers": 2, "max_seq_len": 512}),
    "StarCoder 2": ("starcoder2", {}),
    "Cohere": ("cohere", {"logit_scale": 0.5}),
    "DeepSeek V3 (MLA)": (
        "deepseek_v3",
        {
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
            "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 24, "v_head_dim": 32,
            "first_k_dense_replace": 1, "num_key_value_heads": 2, "head_dim": UNKNOWN,
        },
    ),
    "LFM 2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Mamba": ("mamba", {"state_size": 16}),
    "Mamba 2": ("mamba2", {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 8}),
    "Jamba": ("jamba", {**EXPERTS, "mamba_d_state": 16, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "gpt-oss": ("gpt_oss", {**EXPERTS, **WINDOW}),
}  # fmt: skip


def make_toy(name: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Saves the toy model of a family, with a tokenizer of one token a byte, which every family's loader opens."""
    model_type, extra = ARCHITECTURES[name]
    shape = {key: value for key, value in (SHAPE | extra | changes).items() if value != UNKNOWN}
    config = transformers.AutoConfig.for_model(model_type, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", "<eos>", *letters])}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder
    )
    return folder


def on_a_laptop(folder: Path) -> str:
    """The sentence that refuses a model on one device; "works" where none does."""
    try:
        probe(LocalEngine(folder, CONFIG), PROBLEMS, CONFIG)
    except UserError as error:
        return str(error).replace(str(folder), "the folder")
    return "works"


def on_a_cluster(folder: Path, name: str) -> str:
    """The same for the cluster's learner: packed rows against each row alone, actor and critic."""
    import torch.distributed as dist

    from scaled.config import Settings
    from scaled.learner import DeepSpeedLearner
    from scaled.world import DistributedWorld

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    world = DistributedWorld()
    settings = Settings(dtype="float32", zero_stage=2, token_budget=200)
    rows = [range(5, 5 + n) for n in (4, 9, 17, 45)]
    rollout = make_rollout(rows, [Sample([7, 8], [0.0] * 2, True)] * 4, range(4), 0)
    try:
        for kind in ("actor", "critic"):
            # Frozen, it needs no optimizer of DeepSpeed; its passes are the same.
            learner = DeepSpeedLearner(folder, kind, CONFIG, settings, world, frozen=True)
            with told_as(name, kind), random_head(learner) if kind == "critic" else torch.no_grad():
                gaps = compare_passes(SimpleNamespace(world=world), learner, rollout, kind)
            refuse(name, gaps, switches_at(learner.model.config))
    except UserError as error:
        return str(error).replace(str(folder), "the folder")
    return "works"


PAGE = """# Which models work

Before a run starts, a few short rows of its task go through what will really be used, and what must be equal is
compared (`minivapo.probe`): the sampler's log-probs with the learner's, rows together with each row alone, the mode
of training with that of the forward pass. A gap above 0.001 nats in float32 ends the command with one sentence; in
bfloat16 the bound is what rounding explains. `policy/sampler_gap_mean` is watched during the run in the same way.

Below is that probe over {count} families of transformers {version}, at toy size with random weights, in float32 on a
CPU. `python benchmarks/which_models.py` made it, and this page. *One device* is `minivapo train`: actor, critic and
sampler. *Cluster* is the packed learner of `scaled`, actor and critic, without vLLM: whether vLLM knows a family and
agrees with the learner is what the probe of the run itself says. Real weights, GPUs and bfloat16 were not run here.

| family | model_type | one device | cluster |
|---|---|---|---|
{rows}

## What refuses them

{sentences}
"""


def write_page(rows: list[dict[str, str]], path: Path) -> None:
    """docs/models.md of the CSV's rows."""
    sentences: list[str] = []

    def cell(sentence: str) -> str:
        if sentence in ("works", ""):
            return sentence or "not run"
        if sentence not in sentences:
            sentences.append(sentence)
        return f"refused ({sentences.index(sentence) + 1})"

    table = [f"| {r['family']} | `{r['model_type']}` | {cell(r['laptop'])} | {cell(r['cluster'])} |" for r in rows]
    listed = [f"{i}. {sentence}" for i, sentence in enumerate(sentences, 1)]
    text = PAGE.format(
        count=len(rows), version=rows[0]["transformers"], rows="\n".join(table), sentences="\n".join(listed)
    )
    path.write_text(text)


def main() -> int:
    """Probes what the CSV does not have yet, then writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES), metavar="FAMILY")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/models.csv")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/models.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    rows: list[dict[str, str]] = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    for name in args.only:
        if any(row["family"] == name for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            model = make_toy(name, Path(folder))
            row = {
                "family": name,
                "model_type": ARCHITECTURES[name][0],
                "laptop": on_a_laptop(model),
                "cluster": on_a_cluster(model, name) if importlib.util.find_spec("deepspeed") else "",
                "transformers": transformers.__version__,
                "torch": torch.__version__,
            }
        rows.append(row)
        rows.sort(key=lambda row: list(ARCHITECTURES).index(row["family"]))
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)
        print(f"{name}: one device {row['laptop']}; cluster {row['cluster'] or 'not run'}", flush=True)
    write_page(rows, args.page)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of DeepSpeed and gloo do not always end with the interpreter
