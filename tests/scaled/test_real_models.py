"""A model and mathematics from files, as a person trains them: GSM8K's columns, DeepSpeed, vLLM, then AIME's."""

import json
import subprocess
import sys

import pytest
from launch import environment, fork, require

pytestmark = pytest.mark.cluster

SMALL = [
    "steps=1", "batch_size=4", "group_size=2", "mini_batch=4", "max_new_tokens=12", "max_prompt_tokens=200",
    "eval_problems=2", "value_pretrain_steps=1", "reward_model_steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    require("datasets", "math_verify")
    from real_models import save_data

    return save_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run of one step on two ranks, of a Qwen2 with its own BPE tokenizer, chat template and heads of 32."""
    require("deepspeed", "vllm")
    from real_models import qwen_tokenizer, save_model

    folder = tmp_path_factory.mktemp("real")
    shape = {"hidden_size": 64, "intermediate_size": 80, "initializer_range": 0.2}
    model = save_model(folder / "tiny", qwen_tokenizer(), **shape)
    words = [f"model={model}", f"task=gsm8k:{data / 'gsm8k.parquet'}", f"run={folder / 'run'}", *SMALL]
    fork(2, "scaled.train", "--config", "scaled/configs/smoke.yaml", *words, log=folder / "log")
    assert (folder / "log").read_text().count("40 rows: ") == 1
    return folder / "run"


def test_gsm8k_trains_on_two_ranks(trained):
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["step"] == 0 and metrics[-1]["step"] == 1 and "eval/accuracy" in metrics[-1]
    assert metrics[-1]["reward/verifier_errors"] == 0
    assert metrics[-1]["policy/sampler_gap_max"] < 1e-4
    prompt = json.loads((trained / "samples.jsonl").read_text().splitlines()[0])["prompt"]
    assert "Anna has" in prompt and prompt.endswith("Solution:\n")


def test_its_policy_is_evaluated_on_aime(trained, data, tmp_path):
    words = ["eval", trained, "--task", f"aime2024:{data / 'aime.parquet'}", "--samples", 4, "--device", "cpu"]
    words += ["--out", tmp_path / "result.json"]
    done = subprocess.run(
        [sys.executable, "-m", "minivapo.cli", *map(str, words)], capture_output=True, text=True, env=environment(),
        cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["settings"]["max_new_tokens"] == 12
    assert [len(p["lengths"]) for p in result["problems"]] == [4, 4, 4] and result["verifier_errors"] == 0
    assert "accuracy" in done.stdout and "pass@4" in done.stdout
