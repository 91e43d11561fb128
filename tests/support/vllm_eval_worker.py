"""`minivapo train`, then `minivapo eval RUN --sampler vllm`, in a process of their own: vLLM shares none with tests."""

import json
import os
import sys
from pathlib import Path

os.environ.update(
    OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1"
)


def main(out: Path) -> None:
    from real_models import qwen_tokenizer, save_data, save_model

    from minivapo import cli
    from minivapo.commands import eval as evaluate
    from minivapo.interfaces import make_rollout
    from minivapo.loading import load_actor
    from minivapo.local import LocalLearner
    from minivapo.responses import encode_prompt
    from minivapo.vapo import Config

    folder = out.parent
    shape = {"hidden_size": 64, "intermediate_size": 80, "initializer_range": 0.2}  # heads of 32: vLLM on the CPU
    model = str(save_model(folder / "model", qwen_tokenizer(), **shape))
    data, run, found = save_data(folder), str(folder / "run"), {}
    words = ["--steps", "1", "--batch-size", "4", "--mini-batch", "2", "--group-size", "2", "--eval-problems", "2"]
    words += ["--value-pretrain-steps", "1", "--reward-model-steps", "1", "--max-new-tokens", "12", "--device", "cpu"]
    words += ["--max-prompt-tokens", "200"]
    # All responses are wrong; a reward of -1 for that moves the run's weights away from the model's.
    words += ["--reward-wrong", "-1", "--actor-lr", "0.01", "--warmup", "1"]
    task = f"gsm8k:{data / 'gsm8k.parquet'}"
    found["trained"] = cli.main(["train", "--model", model, "--task", task, "--run", run, *words])
    build = evaluate.vllm_sampler

    def compare(name, config, settings, device, problems):
        """The weights that vLLM samples from are the run's: its log-probs are those of the learner."""
        tokenizer, sampler = build(name, config, settings, device, problems)
        found["at_once"] = sampler.settings.sampler_sequences
        prompt = encode_prompt(tokenizer, "What is 3 + 4?", 99)
        samples = sampler.generate([prompt], 3, 0, 0)
        rollout = make_rollout([prompt] * 3, samples, [0] * 3, 0)
        for weights, key in ((name, "gap"), (model, "gap_to_base")):
            learner = LocalLearner(load_actor(weights), "actor", Config(), "cpu")
            gap = (learner.forward(rollout)["logprobs"] - rollout.sampled_logprobs)[rollout.mask]
            found[key] = gap.abs().max().item()
        return tokenizer, sampler

    evaluate.vllm_sampler = compare
    words = ["--samples", "4", "--sampler", "vllm", "--device", "cpu", "--sample-batch", "3"]
    words += ["--task", f"aime2024:{data / 'aime.parquet'}", "--out", str(folder / "result.json")]
    found["code"] = cli.main(["eval", run, *words])
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
