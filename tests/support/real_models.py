"""Random-weight folders in the style of Qwen2.5 and Llama 2, with real BPE tokenizers trained on the spot; data."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Work through the problem below one step at a time. End with a line of the form Answer: X",
    "Problem: Anna has 3 apples and buys 4 more. How many apples does she have? Solution: 3 + 4 = 7",
    "What is 12 times 12? The answer is \\boxed{144}. #### 144. Answer: 144, 0 1 2 3 4 5 6 7 8 9",
    "user assistant system\n\nTherefore the final result is \\frac{1}{2}; naïve café 你好 🙂",
] * 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer(corpus=CORPUS, chat=True):
    """Byte-level BPE, no BOS, EOS `<|endoftext|>` as a base model has it; turns end with `<|im_end|>`."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    tokenizer.chat_template = CHATML if chat else None
    return tokenizer


def llama_tokenizer(corpus=CORPUS):
    """Llama 2's kind: BPE over characters with byte fallback and `▁`, BOS before every text, no pad token, no chat."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    core.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=500, special_tokens=special[:3], show_progress=False)
    )
    table = json.loads(core.to_str())
    vocabulary = table["model"]["vocab"]
    for token in special[3:]:
        vocabulary[token] = len(vocabulary)
    merges = [tuple(m) for m in table["model"]["merges"]]
    core.model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_model(folder: Path, tokenizer, kind="qwen2", head="CausalLM", seed=0, rows=None, **changes) -> Path:
    """A random-weight transformers folder; `head` is CausalLM, SequenceClassification or TokenClassification."""
    shape = {
        "vocab_size": rows or len(tokenizer) + 8,  # real models round their embeddings up
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": kind == "qwen2",
    } | changes
    config_class, prefix = {
        "qwen2": (transformers.Qwen2Config, "Qwen2"),
        "llama": (transformers.LlamaConfig, "Llama"),
    }[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{prefix}For{head}")(config_class(**shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_data(folder: Path) -> Path:
    """Made-up files with the columns of the real ones: gsm8k.parquet, dapo.parquet, aime.parquet."""
    gsm8k = [
        {
            "question": f"Anna has {i} apples and buys {i + 1} more. How many?",
            "answer": f"{i}+{i + 1}\n#### {2 * i + 1}",
        }
        for i in range(40)
    ]
    head, tail = "Solve the problem. The last line is Answer: $Answer", "Remember to put your answer on its own line."
    dapo = [
        {
            "prompt": [{"role": "user", "content": f"{head}\n\nWhat is {i} times 12?\n\n{tail}"}],
            "reward_model": {"ground_truth": str(12 * i), "style": "rule"},
        }
        for i in range(40)
    ]
    aime = [{"id": i, "problem": f"What is {i} + 70?", "answer": f"{i + 70}", "year": "2024"} for i in range(3)]
    for name, rows in (("gsm8k", gsm8k), ("dapo", dapo), ("aime", aime)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder
