"""Data of the mathematics tasks: real loaders on small files, a real tokenizer, no network.

One long file, since most of it is tables of layouts and refusals for the same few fixtures.
"""

import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("math_verify")
pytest.importorskip("datasets")

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minivapo.interfaces import UserError
from minivapo.tasks.math import MATH_TASKS, make_math_task
from minivapo.tasks.prompts import bare_question, question_key, render
from minivapo.tasks.sources import SOURCES
from minivapo.tasks.verifier import Verifier

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE trained here, with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([f"How many eggs are {i} and {i + 1} eggs?" for i in range(50)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=1) as verifier:
        yield verifier


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def gsm8k_rows(count, start=0):
    return [
        {"question": f"Ann has {i} eggs and buys 1,000. How many?", "answer": f"{i}+1000={i + 1000}\n#### {i + 1000:,}"}
        for i in range(start, start + count)
    ]


DAPO_TEXT = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)


def dapo_rows(count, copies=1):
    return [
        {
            "data_source": "math_dapo",
            "prompt": [{"content": DAPO_TEXT.format(f"Find $x_{{{i}}}$.\n\nIt is an integer."), "role": "user"}],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(i), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"{i}-{copy}"},
        }
        for copy in range(copies)
        for i in range(count)
    ]


def aime_rows(count=30):
    return [
        {
            "id": i,
            "problem": f"Find the remainder {i}.",
            "solution": "…",
            "answer": f"{i:03d}",
            "url": "",
            "year": "2024",
        }
        for i in range(count)
    ]


def stream(task, start, count, seed=0):
    return [problem.id for problem in task.train_problems(start, count, seed)]


# -------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_gsm8k_from_one_file(tmp_path, suffix, verifier):
    path = write(tmp_path / f"gsm8k{suffix}", gsm8k_rows(60))
    task = make_math_task(f"gsm8k:{path}", verifier=verifier)
    assert (task.name, task.stop, task.report.rows) == ("gsm8k", (), 60)
    assert len(task.train) + len(task.test) == 60
    assert 1 <= len(task.test) <= 12
    problem = next(p for p in task.train + task.test if "has 7 eggs" in p.prompt)
    assert problem.answer == "1,007"
    assert problem.prompt.endswith("Solution:\n")
    assert "Answer: X" in problem.prompt
    responses = ["so 1007.\nAnswer: 1007", "so 1,007 eggs.\n#### 1,007", "Answer: 1008", "", r"\boxed{9^{9^{9}}}"]
    assert task.judge([problem] * 5, responses)[:4] == [True, True, False, False]


def test_gsm8k_from_a_downloaded_folder(tmp_path, verifier):
    (tmp_path / "main").mkdir()
    (tmp_path / "socratic").mkdir()
    overlap = gsm8k_rows(2)
    write(tmp_path / "main" / "train-00000-of-00001.parquet", gsm8k_rows(20))
    write(tmp_path / "main" / "test-00000-of-00001.parquet", overlap + gsm8k_rows(5, 100))
    write(tmp_path / "socratic" / "train-00000-of-00001.parquet", gsm8k_rows(50, 500))
    task = make_math_task(f"gsm8k:{tmp_path}", verifier=verifier)
    assert [len(task.train), len(task.test), task.report.in_test, task.report.rows] == [18, 7, 2, 27]
    assert "has 0 eggs" in task.test[0].prompt  # file order
    assert str(task.report) == "27 rows: 18 for training, 7 held out; dropped: 2 also in the test split"


def test_dapo_math_without_its_hundredfold_copies(tmp_path, verifier, caplog):
    path = write(tmp_path / "dapo.parquet", dapo_rows(40, copies=5))
    with caplog.at_level("INFO", "minivapo"):
        task = make_math_task(f"dapo-math:{path}", verifier=verifier)
    assert (task.report.rows, task.report.duplicates, len(task.train) + len(task.test)) == (200, 160, 40)
    assert "dropped: 160 duplicates" in caplog.text
    prompts = [p.prompt for p in task.train + task.test]
    assert len(set(prompts)) == 40
    assert all("$Answer" not in p and "Remember" not in p and "It is an integer." in p for p in prompts)
    verbatim = make_math_task(f"dapo-math:{path}", template="none", verifier=verifier)
    assert verbatim.test[0].prompt.startswith("Solve the following")
    assert [p.id for p in verbatim.test] == [p.id for p in task.test]


def test_bare_question_takes_off_whole_paragraphs_only():
    assert bare_question(DAPO_TEXT.format("Solve it. $x$ is the form.")) == "Solve it. $x$ is the form."
    assert bare_question("Remember to put your answer first.") == "Remember to put your answer first."


@pytest.mark.parametrize("name", ["aime2024", "aime2025"])
def test_aime_is_for_evaluation_only(tmp_path, name, verifier):
    path = write(tmp_path / "aime.parquet", aime_rows())
    task = make_math_task(f"{name}:{path}", verifier=verifier)
    assert len(task.test_problems()) == 30
    assert [p.answer for p in task.test_problems(3)] == ["000", "001", "002"]
    assert task.judge(task.test_problems(2), [r"\boxed{0}", "Answer: 2"]) == [True, False]
    with pytest.raises(UserError, match="for evaluation only"):
        task.train_problems(0, 1, 0)


def test_aime_in_other_published_layouts(tmp_path, verifier):
    capitals = [{"ID": "I-1", "Problem": "Find it.", "Answer": 33}, {"ID": "I-2", "Problem": "Find more.", "Answer": 4}]
    assert make_math_task(f"aime2024:{write(tmp_path / 'a.jsonl', capitals)}", verifier=verifier).test[0].answer == "33"
    nested = write(tmp_path / "b.parquet", dapo_rows(30, copies=32))
    task = make_math_task(f"aime2024:{nested}", verifier=verifier)
    assert (len(task.test), task.report.duplicates) == (30, 30 * 31)


def test_jsonl_prompts_are_verbatim(tmp_path, verifier):
    rows = [
        {"prompt": f"  Say {i}.\n", "answer": [i, float(i), f"{i}", f"\\frac{{{i}}}{{1}}"][i % 4]} for i in range(40)
    ]
    path = write(tmp_path / "own.jsonl", rows)
    task = make_math_task(f"jsonl:{path}", stop=("\n\n",), verifier=verifier)
    assert task.stop == ("\n\n",)
    assert {p.prompt for p in task.train + task.test} == {row["prompt"] for row in rows}
    problems = task.train + task.test
    assert task.judge(problems, [f"Answer: {p.prompt.strip(' .Say')}"[:-2].strip() for p in problems]) == [True] * 40


# --------------------------------------------------------------------------------------- splits and streams


def test_no_row_is_lost(tmp_path, tokenizer, verifier):
    rows = [
        *gsm8k_rows(50),
        *gsm8k_rows(10),
        {"question": "Ann has 3 eggs  and buys 1,000. How many?", "answer": "#### 1003.0"},  # same, other blanks
        {"question": "Ann has 4 eggs and buys 1,000. How many?", "answer": "#### 5"},  # contradicts two rows
        {"question": "word " * 300, "answer": "#### 1"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    task = make_math_task(f"gsm8k:{path}", tokenizer=tokenizer, max_prompt_tokens=300, verifier=verifier)
    report = task.report
    assert (report.rows, report.duplicates, report.contradictory, report.overlong) == (63, 10, 3, 1)
    assert report.rows == report.train + report.test + report.duplicates + report.contradictory + report.overlong
    assert not any("has 4 eggs" in p.prompt for p in task.train + task.test)


def test_the_split_survives_new_rows_and_other_orders(tmp_path, verifier):
    few = make_math_task(f"gsm8k:{write(tmp_path / 'a.jsonl', gsm8k_rows(200))}", verifier=verifier)
    many = make_math_task(f"gsm8k:{write(tmp_path / 'b.jsonl', gsm8k_rows(400)[::-1])}", verifier=verifier)
    ids = {p.id for p in few.train + few.test}
    assert {p.id for p in few.test} == {p.id for p in many.test} & ids
    assert 0.01 < len(many.test) / 400 < 0.12


@pytest.mark.parametrize("count", [2, 3, 5])
def test_tiny_files_have_both_splits(tmp_path, count, verifier):
    path = write(tmp_path / "tiny.jsonl", gsm8k_rows(count))
    for share in (0.001, 0.05, 0.999):
        task = make_math_task(f"gsm8k:{path}", held_out=share, verifier=verifier)
        assert task.train
        assert task.test


@pytest.fixture(scope="module")
def task(tmp_path_factory, verifier):
    path = write(tmp_path_factory.mktemp("stream") / "rows.jsonl", gsm8k_rows(40))
    return make_math_task(f"gsm8k:{path}", held_out=0.2, verifier=verifier)


def test_a_whole_file_for_evaluation_and_long_prompts_counted(tmp_path, tokenizer, verifier):
    rows = [*gsm8k_rows(40), {"question": "How many eggs? " * 60, "answer": "#### 1"}]
    path = write(tmp_path / "gsm8k.jsonl", rows)
    whole = make_math_task(f"gsm8k:{path}", held_out=1.0, verifier=verifier)
    assert len(whole.test) == 41 and whole.left_out == 0
    with pytest.raises(UserError, match="for evaluation only"):
        whole.train_problems(0, 1, 0)
    short = make_math_task(f"gsm8k:{path}", held_out=1.0, tokenizer=tokenizer, max_prompt_tokens=200, verifier=verifier)
    assert len(short.test) == 40 and short.left_out == short.report.overlong == 1


def test_held_out_problems_are_never_trained_on(task):
    size = len(task.train)
    assert set(stream(task, 0, 5 * size)) == {p.id for p in task.train}
    assert not {p.id for p in task.train} & {p.id for p in task.test}
    assert not {p.prompt for p in task.train} & {p.prompt for p in task.test}


def test_every_epoch_is_a_permutation_of_its_own(task):
    size = len(task.train)
    epochs = [stream(task, e * size, size) for e in range(4)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert stream(task, 0, size, seed=1) != epochs[0]


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 500), st.lists(st.integers(0, 60), max_size=6), st.integers(0, 3))
def test_any_split_of_the_stream_gives_the_same_problems(task, start, counts, seed):
    whole = stream(task, start, sum(counts), seed)
    pieces = []
    for count in counts:
        pieces += stream(task, start + len(pieces), count, seed)
    assert pieces == whole


# ------------------------------------------------------------------------------------------------ templates


def test_chat_template(tmp_path, tokenizer, verifier):
    path = write(tmp_path / "rows.jsonl", gsm8k_rows(5))
    task = make_math_task(f"gsm8k:{path}", template="chat", tokenizer=tokenizer, verifier=verifier)
    prompt = task.train[0].prompt
    assert prompt.startswith("<|user|>Ann has")
    assert prompt.endswith("<|end|><|assistant|>")
    assert "Answer: X" in prompt


def test_braces_in_a_question_are_left_alone():
    question = r"Find \frac{question}{2} and {question}, {0}."
    assert question in render(question, "base")


def test_over_long_prompts_are_counted_in_tokens(tmp_path, tokenizer, verifier):
    rows = [{"prompt": "eggs " * n, "answer": 1} for n in range(1, 30)]
    path = write(tmp_path / "rows.jsonl", rows)
    lengths = {row["prompt"]: len(tokenizer(row["prompt"])["input_ids"]) for row in rows}
    limit = sorted(lengths.values())[14]
    task = make_math_task(
        f"jsonl:{path}", tokenizer=tokenizer, max_prompt_tokens=limit, held_out=0.3, verifier=verifier
    )
    kept = {p.prompt for p in task.train + task.test}
    assert kept == {prompt for prompt, length in lengths.items() if length <= limit}
    assert task.report.overlong == 29 - len(kept)


# ------------------------------------------------------------------------------------------------ bad input


def bad_files(folder):
    """(spec, what the message must say) of files that must be refused in one line."""
    rows = gsm8k_rows(5)
    (folder / "text.parquet").write_text("this is not parquet")
    (folder / "cut.parquet").write_bytes(b"PAR1" + b"\x00" * 50)
    (folder / "text.jsonl").write_text('{"prompt": "a", "answer": "1"}\nnot json\n')
    (folder / "bytes.jsonl").write_bytes(b'{"prompt": "\xff\xfe", "answer": "1"}\n')
    (folder / "array.json").write_text('[\n{"prompt": "a", "answer": "1"}\n]')
    (folder / "list.jsonl").write_text("[1, 2]\n")
    (folder / "surrogate.jsonl").write_text('{"prompt": "a\\ud800", "answer": "1"}\n')
    (folder / "rows.csv").write_text("prompt,answer\n")
    (folder / "empty.jsonl").write_text("")
    dapo = dapo_rows(2)
    no_truth = [dapo[0], {**dapo[1], "reward_model": {"ground_truth": None, "style": ""}}]
    return [
        (f"gsm8k:{folder / 'none.parquet'}", "there is no such file"),
        (f"gsm8k:{folder / 'text.parquet'}", "text.parquet: not a parquet file"),
        (f"gsm8k:{folder / 'cut.parquet'}", "not a readable parquet file"),
        (f"gsm8k:{folder / 'rows.csv'}", r"expected .parquet or .jsonl"),
        (f"gsm8k:{folder}", "no train and test files"),
        (f"aime2024:{folder}", "a folder; give a file"),
        (f"jsonl:{folder / 'text.jsonl'}", "line 2: no JSON object"),
        (f"jsonl:{folder / 'bytes.jsonl'}", "line 1: no JSON object"),
        (f"jsonl:{folder / 'array.json'}", "line 1: no JSON object; a jsonl file has one a line"),
        (f"jsonl:{folder / 'list.jsonl'}", "line 1: no JSON object"),
        (f"jsonl:{folder / 'surrogate.jsonl'}", "not valid Unicode"),
        (f"jsonl:{folder / 'empty.jsonl'}", "no problems are left"),
        ("jsonl", "jsonl:PATH"),
        ("math500", "no task 'math500'; choose one of gsm8k"),
        (
            f"jsonl:{write(folder / 'columns.parquet', rows)}",
            "needs the columns prompt, answer; there are only question",
        ),
        (f"gsm8k:{write(folder / 'columns.jsonl', aime_rows(2))}", "the answer has no '#### ' line"),
        (f"dapo-math:{write(folder / 'dapo.jsonl', rows)}", "needs the columns prompt, reward_model; there are only"),
        (f"dapo-math:{write(folder / 'truth.parquet', no_truth)}", "truth.parquet, row 2: the answer is empty"),
        (f"jsonl:{write(folder / 'answer.jsonl', [{'prompt': 'a', 'answer': ' '}])}", "line 1: the answer is empty"),
        (f"jsonl:{write(folder / 'null.parquet', [{'prompt': 'a', 'answer': None}])}", "row 1: the answer is empty"),
        (f"jsonl:{write(folder / 'prompt.jsonl', [{'prompt': '', 'answer': 1}])}", "line 1: the question is empty"),
        (f"gsm8k:{write(folder / 'hash.jsonl', [{'question': 'a', 'answer': '####'}])}", "line 1: the answer is empty"),
        (f"gsm8k:{write(folder / 'one.jsonl', rows[:1])}", "no problems are left"),
    ]


def answers_of(path, verifier, name="jsonl"):
    task = make_math_task(f"{name}:{path}", template="none", verifier=verifier)
    return {problem.prompt: problem for problem in task.train + task.test}, task


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_gold_that_is_a_list_is_a_set(tmp_path, suffix, verifier):
    rows = [{"prompt": f"Roots {i}?", "answer": [1 + i, 2]} for i in range(3)] + [{"prompt": "One?", "answer": [7]}]
    problems, task = answers_of(write(tmp_path / f"rows{suffix}", rows), verifier)
    assert problems["One?"].answer == "7"
    responses = [r"\boxed{2, 3}", r"\boxed{\{3, 2\}}", r"\boxed{3}", r"\boxed{[2, 3]}", r"\boxed{2.5}"]
    assert task.judge([problems["Roots 2?"]] * 5, responses) == [True, True, False, False, False]


@pytest.mark.parametrize("answer", [{"value": 5}, [[1, 2], 3], [{"a": 1}], [None]])
def test_a_gold_of_another_kind_is_refused_with_its_line(tmp_path, answer, verifier):
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": answer}]
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: the answer must be a text, a number or a list of these"):
        answers_of(write(tmp_path / "rows.jsonl", rows), verifier)


def test_a_gold_of_bytes_is_refused_with_its_row(tmp_path, verifier):
    path = write(tmp_path / "rows.parquet", [{"prompt": "a", "answer": b"5"}, {"prompt": "b", "answer": b"6"}])
    with pytest.raises(UserError, match=r"row 1: the answer must be a text.*not bytes"):
        answers_of(path, verifier)


def test_layouts_of_verl_and_their_text(tmp_path, verifier):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Find it."}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "Find "}, {"type": "text", "text": "them."}]}]
    truth = {"ground_truth": "5", "style": "rule"}
    rows = [
        {"prompt": ["Add them."], "reward_model": truth},
        {"prompt": chat, "reward_model": {"ground_truth": ["5"]}},
        {"prompt": json.dumps([{"role": "user", "content": "Take it."}]), "reward_model": json.dumps(truth)},
        {"prompt": parts, "reward_model": truth},
        {"prompt": "Plain.", "reward_model": truth},
    ]
    for name in ("dapo-math", "jsonl"):
        problems, _ = answers_of(write(tmp_path / "rows.jsonl", rows), verifier, name)
        assert set(problems) == {"Add them.", "Find it.", "Take it.", "Find them.", "Plain."}
        assert {problem.answer for problem in problems.values()} == {"5"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": ["a", "b"], "reward_model": {"ground_truth": 1}}, "line 1: the question must be a text or a list"),
        ({"prompt": {"text": "a"}, "answer": 1}, "line 1: the question must be a text or a list of chat messages"),
        ({"prompt": "a", "reward_model": "rule"}, "line 1: the column reward_model needs an object with ground_truth"),
        ({"prompt": "a", "reward_model": {"style": "x"}}, "line 1: the column reward_model needs an object with"),
    ],
)
def test_what_is_no_question_or_no_truth_is_said(tmp_path, row, message, verifier):
    with pytest.raises(UserError, match=message):
        answers_of(write(tmp_path / "rows.jsonl", [row, row]), verifier)


def test_bad_files_are_refused_in_one_line(tmp_path, verifier):
    for spec, message in bad_files(tmp_path):
        with pytest.raises(UserError) as refusal:
            make_math_task(spec, verifier=verifier)
        assert message in str(refusal.value), spec
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "chat"}, "no tokenizer was given"),
        ({"template": "few-shot"}, "no prompt template 'few-shot'"),
        ({"max_prompt_tokens": 10}, "needs a tokenizer"),
        ({"held_out": 1.1}, "between 0 and 1"),
    ],
)
def test_bad_options_are_refused_before_reading(options, message):
    with pytest.raises(UserError, match=message):
        make_math_task("gsm8k", **options)


def test_a_tokenizer_without_a_chat_template(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|end|>")
    with pytest.raises(UserError, match="this tokenizer has none; use 'base'"):
        make_math_task("gsm8k", template="chat", tokenizer=bare)


def test_all_prompts_over_long(tmp_path, tokenizer, verifier):
    path = write(tmp_path / "rows.jsonl", gsm8k_rows(5))
    with pytest.raises(UserError, match="5 over-long prompts"):
        make_math_task(f"gsm8k:{path}", tokenizer=tokenizer, max_prompt_tokens=3, verifier=verifier)


# -------------------------------------------------------------------------------------------------- the hub


def test_the_names_are_complete():
    assert set(MATH_TASKS) == set(SOURCES)
    assert question_key("a  b\n") == question_key("a b")


@pytest.mark.parametrize("name", ["gsm8k", "dapo-math", "aime2024", "aime2025"])
def test_no_network_is_said_at_once(name, tmp_path, monkeypatch, verifier):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(UserError) as refusal:
        make_math_task(name, verifier=verifier)
    assert time.perf_counter() - start < 10
    assert "HF_HUB_OFFLINE=1" in str(refusal.value)
    assert SOURCES[name].hub in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_hub_that_cannot_be_reached_is_not_waited_for(tmp_path):
    code = """if True:
        import time
        import datasets
        from minivapo.tasks.math import make_math_task
        start = time.perf_counter()
        try:
            make_math_task("gsm8k")
        except ValueError as error:
            print(type(error).__name__, error)
        print(time.perf_counter() - start)
        print(datasets.config.HF_HUB_OFFLINE)
    """
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    message, seconds, offline = done.stdout.splitlines()
    assert message.startswith("UserError openai/gsm8k cannot be read"), done.stderr
    assert float(seconds) < 15  # load_dataset alone sleeps for 23 s between its retries
    assert offline == "False"


def test_the_cache_of_an_earlier_download_is_used(tmp_path, monkeypatch, verifier):
    """What `load_dataset("openai/gsm8k", "main")` leaves behind, made here from files of our own."""
    files = {
        split: str(write(tmp_path / f"{split}.parquet", gsm8k_rows(n, 50 * n)))
        for split, n in (("train", 9), ("test", 3))
    }
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    (made,) = (path.parent for path in (tmp_path / "cache" / "parquet").rglob("dataset_info.json"))
    place = tmp_path / "cache" / "openai___gsm8k" / "main" / "0.0.0" / made.name
    place.parent.mkdir(parents=True)
    made.rename(place)
    for arrow in place.glob("parquet-*.arrow"):
        arrow.rename(place / arrow.name.replace("parquet-", "gsm8k-"))
    info = place / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "config_name": "main", "dataset_name": "gsm8k"}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    task = make_math_task("gsm8k", verifier=verifier)
    assert (len(task.train), len(task.test)) == (9, 3)
