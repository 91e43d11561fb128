"""The commands a person types for real models and mathematics, offline: made-up data, real loaders and verifier.

Long, since each way in which a model or a file can be wrong is tried through the commands.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("datasets")
pytest.importorskip("math_verify")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from real_models import CHATML, llama_tokenizer, qwen_tokenizer, save_data, save_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from minivapo import loading
from minivapo.cli import main
from minivapo.interfaces import Sample, UserError, make_rollout
from minivapo.loading import (
    check_same_vocabulary,
    explain_loading,
    hub_answers,
    load_actor,
    load_critic,
    load_tokenizer,
    stop_ids,
    turn_end_id,
)
from minivapo.local import LocalEngine, LocalLearner, LocalSampler
from minivapo.responses import chat_prompt, encode_prompt, pad_id, response_text
from minivapo.tasks.math import render
from minivapo.vapo import Config, actor_loss

SIZES = """--device cpu --steps 1 --batch-size 4 --mini-batch 2 --micro-batch 2 --group-size 2 --eval-problems 2
--value-pretrain-steps 1 --reward-model-steps 1 --max-new-tokens 12 --max-prompt-tokens 200"""
SMALL = SIZES.split()


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("qwen") / "tiny", qwen_tokenizer())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("llama") / "tiny", llama_tokenizer(), "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_data(tmp_path_factory.mktemp("data"))


def run(*words) -> int:
    """A command in this process."""
    return main([str(word) for word in words])


def refusal(capsys, *words) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    assert run(*words) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("minivapo: ") and "Traceback" not in message
    lines = [line for line in message.splitlines() if not line.startswith("critic from")]
    assert len(lines) == 1
    return lines[0]


# ---------------------------------------------------------------------------------------------------------
# End to end
# ---------------------------------------------------------------------------------------------------------


def test_gsm8k_trains_evaluates_and_resumes(qwen, data, tmp_path, capsys):
    folder, task = tmp_path / "run", f"gsm8k:{data / 'gsm8k.parquet'}"
    assert run("train", "--model", qwen, "--task", task, "--run", folder, *SMALL, "--save-memory") == 0
    assert "40 rows" in capsys.readouterr().out
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 1 and "eval/accuracy" in metrics[-1] and metrics[-1]["reward/verifier_errors"] == 0
    assert json.loads((folder / "config.json").read_text())["engine_options"]["save_memory"] is True

    aime = f"aime2024:{data / 'aime.parquet'}"
    assert run("eval", folder, "--task", aime, "--samples", 4, "--temperature", 1.0, "--top-p", 0.7) == 0
    result = json.loads(next(folder.glob("eval-aime2024-*.json")).read_text())
    assert [len(p["lengths"]) for p in result["problems"]] == [4, 4, 4]
    assert result["settings"]["max_new_tokens"] == 12 and result["verifier_errors"] == 0
    assert run("sample", folder, "--count", 1, "--show-prompt") == 0
    assert "Problem: Anna has" in capsys.readouterr().out
    assert "is complete" in refusal(capsys, "train", "--resume", folder, "--device", "cpu")  # data and model load again
    # A run folder is a model like any other.
    assert type(load_actor(folder)).__name__ == "Qwen2ForCausalLM"
    assert type(load_critic(folder)).__name__ == "Qwen2ForTokenClassification"


def test_dapo_math_with_chat_template_and_a_smaller_critic(qwen, data, tmp_path):
    critic = save_model(tmp_path / "critic", qwen_tokenizer(), hidden_size=8, intermediate_size=16, seed=1)
    folder, task = tmp_path / "run", f"dapo-math:{data / 'dapo.parquet'}"
    words = ["--template", "chat", "--stop", "Problem", "--critic", critic, "--bf16", "--sample-batch", 2]
    assert run("train", "--model", qwen, "--task", task, "--run", folder, *SMALL, *words) == 0
    record = json.loads((folder / "config.json").read_text())
    assert record["engine_options"]["stop"] == ["Problem"] and record["engine_options"]["autocast"] is True
    shape = json.loads((folder / "checkpoint" / "critic" / "config.json").read_text())
    assert shape["hidden_size"] == 8
    prompt = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])["prompt"]
    assert prompt.startswith("<|im_start|>user\nWhat is") and prompt.endswith("<|im_start|>assistant\n")
    assert "Remember to put" not in prompt


def test_reward_model_starts_vanilla_ppo_on_a_llama(llama, data, tmp_path, capsys):
    task = f"gsm8k:{data / 'gsm8k.parquet'}"
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"What is {i} + 1?", "response": f"Answer: {i + i % 2}", "correct": i % 2 == 1} for i in range(8)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = [*SMALL, "--reward-model-steps", 3, "--value-pretrain-lr", 0.01]
    assert run("reward-model", tmp_path / "rm", "--model", llama, "--pairs", pairs, *sizes) == 0
    assert "ranking" in capsys.readouterr().out
    assert run("reward-model", tmp_path / "rm2", "--model", llama, "--task", task, *SMALL) == 0
    assert json.loads((tmp_path / "rm2" / "reward_model.json").read_text())["history"][0]["rollout"] == 1
    before = load_critic(tmp_path / "rm").score.weight.detach()
    assert before.abs().sum() > 0  # trained, and loaded again

    words = ["--preset", "ppo", "--critic-init", tmp_path / "rm", "--run", tmp_path / "run", *SMALL]
    words += ["--group-size", 1, "--value-pretrain-steps", 0]
    assert run("train", "--model", llama, "--task", task, *words) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "pretrain/" not in lines  # the critic is taken as it is


@pytest.mark.once
def test_a_reward_model_learns_to_rank(qwen, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"{i} + 1?", "response": "Answer: 7" if i % 2 else "step", "correct": i % 2 == 1} for i in range(64)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = [*SMALL, "--batch-size", 32, "--mini-batch", 8, "--reward-model-steps", 6, "--value-pretrain-lr", 0.01]
    assert run("reward-model", tmp_path / "rm", "--model", qwen, "--pairs", pairs, *sizes) == 0
    history = json.loads((tmp_path / "rm" / "reward_model.json").read_text())["history"]
    assert history[0]["ranking"] == 0.5  # the head starts at zero
    assert history[-1]["ranking"] > 0.95


# ---------------------------------------------------------------------------------------------------------
# Tokens
# ---------------------------------------------------------------------------------------------------------


def test_bos_is_there_once_or_not_at_all(qwen, llama):
    q, t = load_tokenizer(qwen), load_tokenizer(llama)
    ids = encode_prompt(t, "What is 3 + 4?", 99)
    assert ids.count(t.bos_token_id) == 1 and ids[0] == t.bos_token_id
    assert encode_prompt(t, "<s>What is 3 + 4?", 99).count(t.bos_token_id) == 1
    assert q.bos_token_id is None and q.decode(encode_prompt(q, "What is 3?", 99)) == "What is 3?"
    assert t.pad_token_id is None and pad_id(t) == 0  # no pad token is no obstacle: padding is never read


def test_every_end_of_a_response(qwen, llama):
    q, actor = load_tokenizer(qwen), load_actor(qwen)
    turn = q.convert_tokens_to_ids("<|im_end|>")
    assert turn_end_id(q) == turn and stop_ids(actor, q) == sorted({q.eos_token_id, turn})
    actor.generation_config.eos_token_id = [q.eos_token_id, 7, 9]
    assert stop_ids(actor, q) == sorted({q.eos_token_id, turn, 7, 9})
    t = load_tokenizer(llama)
    assert turn_end_id(t) is None and stop_ids(load_actor(llama), t) == [t.eos_token_id]


def with_template(qwen, template):
    tokenizer = load_tokenizer(qwen)
    tokenizer.chat_template = template
    return tokenizer


def test_turn_ends_known_only_as_added_tokens(qwen, tmp_path):
    """As where a folder names `<|im_end|>` among its added tokens and not among its special ones."""
    core = load_tokenizer(qwen)._tokenizer
    core.add_tokens([AddedToken("<end_of_turn>", special=False)])
    bare = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    bare.chat_template = CHATML.replace("<|im_end|>", "<end_of_turn>")
    turn = bare.convert_tokens_to_ids("<end_of_turn>")
    assert turn not in bare.all_special_ids and turn_end_id(bare) == turn
    ids = bare("Answer: 7", add_special_tokens=False)["input_ids"]
    assert response_text(bare, Sample([*ids, turn], [-1.0] * (len(ids) + 1), True)) == "Answer: 7"
    assert response_text(bare, Sample(ids, [-1.0] * len(ids), False)) == "Answer: 7"


def test_a_template_that_alters_the_words_ends_no_turn(qwen):
    assert turn_end_id(with_template(qwen, CHATML.replace("m['content']", "m['content'] | upper"))) is None


def test_a_chat_prompt_has_the_tokens_of_the_template(qwen, llama):
    """Whatever the tokenizer adds itself: two tokens of GLM, a BOS after a line break, one the template leaves out."""
    message = [{"role": "user", "content": "What is 3 + 4?"}]
    glm = load_tokenizer(qwen)
    glm._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> <|im_end|> $A",
        special_tokens=[(t, glm.convert_tokens_to_ids(t)) for t in ("<|im_start|>", "<|im_end|>")],
    )
    bos = load_tokenizer(llama)
    turns = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    for tokenizer, opening in ((glm, "<|im_start|><|im_end|>"), (bos, "\n<s>"), (bos, ""), (bos, "<s>"), (glm, "")):
        tokenizer.chat_template = opening.replace("\n", "{{ '\\n' }}") + turns
        prompt = chat_prompt(tokenizer, message[0]["content"])
        expected = tokenizer.apply_chat_template(message, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert encode_prompt(tokenizer, prompt, 99) == expected
        assert encode_prompt(tokenizer, render("What is 3?", "chat", tokenizer), 99)[:2] == expected[:2]
    assert encode_prompt(bos, "\n<s>What is 3?", 99).count(bos.bos_token_id) == 1  # also where no template wrote it
    assert encode_prompt(glm, "What is 3?", 99)[:2] == glm.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])


def test_templates_that_will_not_do_are_told_in_one_line(qwen):
    raises = with_template(qwen, "{{ raise_exception('Only\nsystem messages') }}")
    with pytest.raises(
        UserError, match=r"does not take a user's message.*Only system messages.*--template base"
    ) as error:
        render("What is 3?", "chat", raises)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="does not take a user's message"):
        render("What is 3?", "chat", with_template(qwen, "{% for m in messages %}"))
    with pytest.raises(UserError, match="changes the words"):
        render("What is 3?", "chat", with_template(qwen, CHATML.replace("m['content']", "m['content'] | upper")))


class Scripted(LocalSampler):
    """Emits given tokens, whatever the model says."""

    def __init__(self, tokenizer, ends, script, limit, stop=()):
        super().__init__(tokenizer, limit, stop)
        self.ends, self.script, self.version = torch.tensor(ends), script, 0
        self.model = SimpleNamespace(config=LlamaConfig(num_hidden_layers=1))
        self.learner = SimpleNamespace(precision=contextlib.nullcontext)
        self.step = -1

    def decode(self, tokens, attention, positions, cache):
        self.step += 1
        picked = [row[min(self.step, len(row) - 1)] for row in self.script]
        if not hasattr(self, "rows"):  # the prefill sees each prompt once
            self.rows = True
            self.layers(cache, 1)
            return torch.nn.functional.one_hot(torch.tensor(picked[:1]), 500).float() * 1e4
        return torch.nn.functional.one_hot(torch.tensor(picked[: len(tokens)]), 500).float() * 1e4

    def layers(self, cache, rows):
        cache.reorder_cache = lambda rows: None


def test_stop_strings_eos_and_the_limit(qwen):
    q = load_tokenizer(qwen)
    words = q("3 + 4 = 7\n\nProblem: next", add_special_tokens=False)["input_ids"]
    sampler = Scripted(q, [q.eos_token_id], [words], 40, stop=("\n\nProblem",))
    (sample,) = sampler.generate([[5, 6]], 1, 0, 0)
    text = response_text(q, sample)
    assert sample.terminated and text.startswith("3 + 4 = 7\n\nProblem") and "next" not in text

    ended = Scripted(q, [q.eos_token_id, 7], [[11, 12, 7, 13]], 40).generate([[5]], 1, 0, 0)[0]
    assert ended.terminated and ended.tokens == [11, 12, 7]
    cut = Scripted(q, [q.eos_token_id], [[11, 12, 13]], 3).generate([[5]], 1, 0, 0)[0]
    assert not cut.terminated and cut.tokens == [11, 12, 13] and len(cut.logprobs) == 3
    just = Scripted(q, [q.eos_token_id], [[11, 12, q.eos_token_id]], 3).generate([[5]], 1, 0, 0)[0]
    assert just.terminated  # EOS on the last allowed token is no truncation


def test_tokens_are_never_made_again_from_text(qwen):
    q = load_tokenizer(qwen)
    prompt = encode_prompt(q, "What is 12", 99)
    # The policy may spell a word in other pieces than the tokenizer would.
    spelled = [i for letter in "Answer" for i in q(letter, add_special_tokens=False)["input_ids"]] + [q.eos_token_id]
    sample = Sample(spelled, [-1.0] * len(spelled), True)
    assert q(response_text(q, sample), add_special_tokens=False)["input_ids"] != spelled[:-1]
    rollout = make_rollout([prompt], [sample], [0], pad_id(q))
    assert rollout.tokens[0].tolist() == [*prompt, *spelled]
    learner = LocalLearner(load_actor(qwen), "actor", Config(), "cpu")
    found = learner.forward(rollout)["logprobs"][0, len(prompt) :]
    with torch.no_grad():
        logits = learner.model(input_ids=torch.tensor([[*prompt, *spelled]])).logits[0]
    expected = torch.log_softmax(logits, -1)[torch.arange(len(prompt) - 1, len(prompt) + len(spelled) - 1), spelled]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_the_sampler_drew_is_what_the_learner_scores(llama):
    t, actor = load_tokenizer(llama), load_actor(llama)
    learner = LocalLearner(actor, "actor", Config(max_new_tokens=9), "cpu")
    sampler = LocalSampler(t, 9)
    sampler.sync(learner)
    prompts = [encode_prompt(t, text, 99) for text in ("What is 3?", "Problem: Anna has 3 apples 🙂. How many?")]
    samples = sampler.generate(prompts, 2, 0, 0)
    rollout = make_rollout([p for p in prompts for _ in range(2)], samples, [0, 0, 1, 1], pad_id(t))
    gap = learner.forward(rollout)["logprobs"] - rollout.sampled_logprobs
    assert gap[rollout.mask].abs().max() < 1e-5
    assert [s.terminated for s in samples] == [s.tokens[-1] == t.eos_token_id for s in samples]


# ---------------------------------------------------------------------------------------------------------
# Critics, memory
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_critics_from_any_checkpoint(kind, tmp_path, caplog):
    tokenizer = qwen_tokenizer() if kind == "qwen2" else llama_tokenizer()
    found = {}
    for head, labels in (("CausalLM", 2), ("SequenceClassification", 1), ("SequenceClassification", 2)):
        caplog.clear()
        folder = save_model(tmp_path / f"{head}{labels}", tokenizer, kind, head, num_labels=labels)
        critic = load_critic(folder)
        found[head, labels] = critic.score.weight.abs().sum().item(), caplog.text
        assert critic.score.bias.item() == 0
    assert found["CausalLM", 2][0] == 0 and "score.weight" in found["CausalLM", 2][1]
    weight, message = found["SequenceClassification", 1]
    assert weight > 0 and "score.bias" in message and "score.weight" not in message  # a reward model keeps its scores
    assert found["SequenceClassification", 2][0] == 0 and "score.weight" in found["SequenceClassification", 2][1]
    critic.save_pretrained(tmp_path / "critic")
    caplog.clear()
    load_critic(tmp_path / "critic")
    assert not caplog.text


def test_a_checkpoint_without_the_body_is_no_critic(qwen, tmp_path):
    save_model(tmp_path / "deep", qwen_tokenizer(), num_hidden_layers=1)
    config = json.loads((tmp_path / "deep" / "config.json").read_text())
    config |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    (tmp_path / "deep" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"lacks \d+ weights below the head"):
        load_critic(tmp_path / "deep")


def test_an_error_of_our_own_is_not_told_as_the_folders(qwen):
    """As where a number was put in the place of a module that BLOOM has."""
    model = load_actor(qwen)
    with pytest.raises(TypeError, match="cannot assign"), explain_loading(qwen, "model"):
        model.lm_head = 0.0


def test_what_is_no_language_model_starts_no_critic(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="transformers has none for ViTConfig"):
        load_critic(tmp_path)


def damaged(folder, to, change, **config):
    """A copy whose tensors are those that `change` makes of them, and whose config.json says this besides."""
    shutil.copytree(folder, to)
    save_file(change(load_file(folder / "model.safetensors")), to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | config))
    return to


def test_weights_that_the_file_lacks_are_never_random(llama, qwen, tmp_path):
    def refused(name, change, loader=load_actor, of=llama, **config):
        with pytest.raises(UserError) as error:
            loader(damaged(of, tmp_path / name, change, **config))
        return str(error.value)

    headless = refused("headless", lambda w: {k: x for k, x in w.items() if k != "lm_head.weight"})
    assert "lack 1 weights of LlamaForCausalLM" in headless and "lm_head.weight" in headless
    assert "layers.2" in refused("shallow", dict, num_hidden_layers=3)
    assert "weights of layer 1" in refused("deep", dict, num_hidden_layers=1)
    assert "weights of layer 1" in refused("deep-critic", dict, load_critic, num_hidden_layers=1)
    compiled = refused("compiled", lambda w: {f"_orig_mod.{k}": x for k, x in w.items()})
    assert "as torch.compile leaves them" in compiled
    assert "another shape" in refused("resized", dict, vocab_size=300)
    assert not any(p.is_meta for p in load_actor(qwen).parameters())  # a tied head is not missing


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_reward_model_is_no_policy(kind, tmp_path, qwen):
    """Nor where embeddings are tied, and nothing is missing but the score is left over."""
    tokenizer = qwen_tokenizer() if kind == "qwen2" else llama_tokenizer()
    folder = save_model(tmp_path / "rm", tokenizer, kind, "SequenceClassification", num_labels=1)
    with pytest.raises(UserError, match=r"is a reward model or critic|cannot be a policy"):
        load_actor(folder)


def test_an_adapter_is_refused_before_anything_loads(tmp_path, capsys, qwen):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    words = ("--task", "chain", "--run", tmp_path / "run", *SMALL)
    assert "LoRA adapter" in refusal(capsys, "train", "--model", tmp_path, *words)
    assert "merge it into its base model" in refusal(capsys, "eval", tmp_path, "--task", "chain")
    assert "LoRA adapter" in refusal(capsys, "train", "--model", qwen, "--critic", tmp_path, *words)
    with pytest.raises(UserError, match="LoRA adapter"):  # of the hub, which transformers loads where peft is there
        loading.refuse_foreign(SimpleNamespace(_hf_peft_config_loaded=True), {"unexpected_keys": []}, "a/b")


def test_saving_memory_changes_no_number(qwen, monkeypatch):
    rollout = make_rollout(
        [[5, 6, 7], [8, 9]], [Sample([11, 12, 13, 14], [-1.0] * 4, True), Sample([15, 16], [-1.0] * 2, True)], [0, 1], 0
    )
    rollout.correct[:] = True
    rollout.advantages = torch.randn(rollout.tokens.shape, generator=torch.Generator().manual_seed(0))
    rollout.old_logprobs = torch.full(rollout.tokens.shape, -6.0)
    counts = {"tokens": 6.0, "responses": 2.0, "positive_tokens": 6.0, "teaching_tokens": 6.0}
    config = Config()
    plain = LocalLearner(load_actor(qwen), "actor", config, "cpu")
    lean = LocalLearner(load_actor(qwen), "actor", config, "cpu", save_memory=True)
    before = plain.forward(rollout)
    sums = plain.step(rollout, actor_loss(config, counts), 1e-3)
    monkeypatch.setattr("minivapo.passes.LOGITS_AT_ONCE", 1600)  # two tokens of two rows at once
    torch.testing.assert_close(lean.forward(rollout), before)
    for found, expected in zip(lean.step(rollout, actor_loss(config, counts), 1e-3), sums, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    assert all(p.grad is None for p in lean.model.parameters()) and not lean.model.training
    for a, b in zip(plain.model.parameters(), lean.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_training_mode_has_no_dropout(qwen):
    critic = load_critic(qwen).train()
    tokens = torch.arange(1, 20)[None]
    torch.nn.init.ones_(critic.score.weight)
    with torch.no_grad():
        assert torch.equal(critic(input_ids=tokens).logits, critic(input_ids=tokens).logits)


# ---------------------------------------------------------------------------------------------------------
# Bad input: one line, before training starts
# ---------------------------------------------------------------------------------------------------------


def test_data_that_cannot_be_used(qwen, data, tmp_path, capsys):
    train = ("train", "--model", qwen, "--run", tmp_path / "run", *SMALL, "--task")
    pq.write_table(pa.Table.from_pylist([{"question": "1 + 1?"}]), tmp_path / "columns.parquet")
    assert "needs the columns question, answer" in refusal(capsys, *train, f"gsm8k:{tmp_path / 'columns.parquet'}")
    pq.write_table(pa.Table.from_pylist([{"question": "1?", "answer": "x\n#### "}]), tmp_path / "empty.parquet")
    assert "answer is empty" in refusal(capsys, *train, f"gsm8k:{tmp_path / 'empty.parquet'}")
    (tmp_path / "text.parquet").write_text("question,answer\n1,2\n")
    assert "not a parquet file" in refusal(capsys, *train, f"gsm8k:{tmp_path / 'text.parquet'}")
    assert "evaluation only" in refusal(capsys, *train, f"aime2024:{data / 'aime.parquet'}")
    assert "no such file" in refusal(capsys, *train, "dapo-math:nowhere.parquet")
    short = [*train, f"gsm8k:{data / 'gsm8k.parquet'}", "--max-prompt-tokens", 20]
    assert "no problems are left" in refusal(capsys, *short)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_models_that_cannot_be_used(qwen, llama, data, tmp_path, capsys):
    task = f"gsm8k:{data / 'gsm8k.parquet'}"
    train = ("train", "--task", task, "--run", tmp_path / "run", *SMALL, "--model")
    assert "chat template" in refusal(capsys, *train, llama, "--template", "chat")
    assert "context" in refusal(capsys, *train, qwen, "--max-new-tokens", 4096)
    small = save_model(tmp_path / "small", qwen_tokenizer(), rows=300)
    assert "only 300 embeddings" in refusal(capsys, *train, small)
    assert "another vocabulary" in refusal(capsys, *train, qwen, "--critic", llama)
    assert "no folder" in refusal(capsys, *train, "./nowhere")
    assert "no folder" in refusal(capsys, *train, qwen, "--critic-init", tmp_path / "nowhere")
    assert "name one with --model" in refusal(capsys, "train", "--task", task)
    assert not (tmp_path / "run").exists()


def test_a_critic_with_the_policys_vocabulary_passes(qwen, tmp_path):
    other = save_model(tmp_path / "other", qwen_tokenizer(), hidden_size=8, rows=512)
    check_same_vocabulary(load_tokenizer(qwen), other)
    config = dataclasses.replace(Config(), max_prompt_tokens=100)
    engine = LocalEngine(qwen, config, critic=other)
    assert engine.critic.model.config.hidden_size == 8


def test_a_hub_name_without_a_network_is_told_at_once(monkeypatch, capsys, tmp_path):
    def unreachable(*arguments, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    hub_answers.cache_clear()
    start = time.perf_counter()
    with pytest.raises(UserError, match="the hub cannot be reached") as error:
        load_tokenizer("nobody/no-such-model")
    assert time.perf_counter() - start < 20 and "\n" not in str(error.value)
    hub_answers.cache_clear()


def test_pairs_that_cannot_be_used(qwen, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    words = ("reward-model", tmp_path / "rm", "--model", qwen, "--pairs", pairs, *SMALL)
    assert "no such file" in refusal(capsys, *words)
    pairs.write_text('{"prompt": "1?", "response": "1"}\n')
    assert "line 1" in refusal(capsys, *words)
    pairs.write_text('{"prompt": "1?", "response": "1", "correct": true}\n' * 4)
    assert "both right and wrong" in refusal(capsys, *words)
    (tmp_path / "rm").mkdir()
    assert "exists already" in refusal(capsys, *words)


def test_what_a_critic_starts_from(tmp_path):
    assert loading.critic_source("policy", "m") == loading.critic_source("reward-model", "m") == "m"
    assert loading.critic_source("shipped", "m", "c") == loading.critic_source("policy", "m", "c") == "c"
    assert loading.critic_source("saved", "m") == "saved"
    with pytest.raises(UserError, match="comes with no critic: use --critic-init policy"):
        loading.critic_source("shipped", tmp_path)
    (tmp_path / "critic").mkdir()
    assert loading.critic_source("shipped", tmp_path) == tmp_path / "critic"
