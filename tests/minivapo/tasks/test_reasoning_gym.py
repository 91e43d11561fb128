"""reasoning-gym as a source of tasks: splits, verdicts, what is refused, and scorers that raise, hang or run code."""

import contextlib
import fractions
import importlib.util
import re
import subprocess
import sys
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivapo.cli import main
from minivapo.commands.train import read, recorded
from minivapo.interfaces import UserError
from minivapo.options.parse import UsageError, task_options
from minivapo.runs.folder import write_config
from minivapo.tasks import load_task, make_task, task_label
from minivapo.tasks import reasoning_gym as gym
from minivapo.tasks.embedded import is_held_out

real = pytest.mark.real
TWO = {"max_terms": 2, "min_digits": 2, "max_digits": 2}


@pytest.fixture(scope="module")
def sums():
    """Sums and differences of two numbers of two digits."""
    return make_task("reasoning-gym:chain_sum", **TWO)


def solve(question):
    """The answer of a chain_sum question, by reading it as a person would."""
    first, *rest = re.search(r": ([\d+\- ]+) =", question)[1].split()
    total = int(first)
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        total += int(number) if sign == "+" else -int(number)
    return total


@real
def test_gold_answers_of_chain_sum_are_right_for_its_scorer(sums):
    for p in sums.train_problems(0, 40, 3):
        right = solve(p.prompt)
        cases = {
            f"{right}": True,
            f" {right}\n": True,
            f"let me see\nAnswer: {right}": True,
            f"Answer: {right + 1}\nno\n**Final answer:** x\nFinal answer: {right}": True,
            f"<answer>{right + 1}</answer> or <answer> {right} </answer>!": True,
            f"{right + 1}": False,
            f"{right} I think": False,
            f"Answer: {right}\nAnswer: {right + 10}": False,
            "": False,
        }
        assert p.answer == str(right)
        assert sums.judge([p] * len(cases), list(cases)) == list(cases.values())


@real
def test_held_out_problems_are_never_trained_on(sums):
    test, train = sums.test_problems(64), sums.train_problems(0, 300, 0) + sums.train_problems(0, 300, 1)
    assert all(is_held_out(p.prompt) for p in test)
    assert not any(is_held_out(p.prompt) for p in train)
    assert len({p.prompt for p in test}) == 64
    assert sums.test_problems(10) == test[:10]


@real
def test_a_stream_is_fixed_by_its_seed_in_another_process_too(sums):
    whole = sums.train_problems(0, 12, 5)
    assert sums.train_problems(4, 3, 5) == whole[4:7]
    assert sums.train_problems(0, 12, 6) != whole
    assert make_task("reasoning-gym:chain_sum", **TWO).train_problems(0, 12, 5) == whole


@real
@pytest.mark.parametrize("name", ["word_ladder", "graph_color", "n_queens", "codeio"])
def test_generators_of_every_kind_make_and_score(name):
    """Finite ones, ones without gold answer, ones that evaluate, ones that run code to make their problems."""
    task = make_task(f"reasoning-gym:{name}")
    problems = task.train_problems(0, 3, 0)
    assert task.judge(problems, ["no idea"] * 3) == [False] * 3
    if name != "graph_color":
        assert task.judge(problems, [p.answer for p in problems]) == [True] * 3


@real
def test_a_fraction_counts_from_the_threshold_on(sums):
    p = sums.train_problems(0, 1, 0)[0]
    score = sums.worker.ask(int(p.id.rpartition("/")[2]), p.answer + " x")["score"]
    assert 0.4 <= score < 1
    for threshold, verdict in ((1.0, False), (0.4, True)):
        assert gym.ReasoningGym(sums.worker, threshold, str, bool).judge([p], [p.answer + " x"]) == [verdict]


def exact(expression):
    """The value of an arithmetic expression in fractions; None if it divides by zero."""
    numbers = re.sub(r"\d+", lambda m: f"F({m[0]})", expression)
    try:
        return eval(numbers, {"F": fractions.Fraction})
    except ZeroDivisionError:
        return None


@real
@pytest.mark.parametrize("parentheses", [True, False])
@pytest.mark.parametrize("operators", [["+", "-", "*", "/"], ["+", "-", "*"], ["+", "-"], ["*"], ["*", "/"]])
@pytest.mark.parametrize("terms", [2, 6])
def test_basic_arithmetic_is_refused_exactly_where_it_is_wrong(parentheses, operators, terms):
    import reasoning_gym

    options = {"allow_parentheses": parentheses, "operators": operators, "max_terms": terms}
    generator, problems = reasoning_gym.create_dataset("basic_arithmetic", seed=7, **options), []
    for i in range(1000):
        with contextlib.suppress(ZeroDivisionError):  # in the generator, now and then
            problems.append(generator[i])
    values = [exact(re.search(r"[-(\d][-+*/() \d]*", p["question"])[0].rstrip()) for p in problems]
    wrong = sum(value != fractions.Fraction(p["answer"]) for value, p in zip(values, problems, strict=True))
    refused = gym.known_wrong("basic_arithmetic", options)
    assert bool(refused) == (wrong > 0), (wrong, refused)
    if refused:
        with pytest.raises(UserError, match="wrong gold answers"):
            make_task("reasoning-gym:basic_arithmetic", **options)


@real
@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("chain_smu", {}, "perhaps you meant chain_sum"),
        ("", {}, "needs the name of a generator"),
        ("chain_sum", {"max_trms": 2}, "no option 'max_trms'; it has"),
        ("chain_sum", {"max_terms": "two"}, "refuses"),
        ("chain_sum", {"threshold": 0}, "threshold is 0"),
        ("chain_sum", {"threshold": "high"}, "threshold is high"),
        ("chain_sum", {"template": "fancy"}, "no prompt template 'fancy'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, options, wanted):
    with pytest.raises(UserError) as error:
        make_task(f"reasoning-gym:{name}", **options)
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)


@real
def test_prompts_that_are_too_long_are_passed_over(tiny_model):
    task, model = load_task("reasoning-gym:chain_sum", {"min_terms": 2, "max_terms": 9}, str(tiny_model), 24)
    from minivapo.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    lengths = [len(tokenizer(p.prompt)["input_ids"]) for p in task.train_problems(0, 60, 0)]
    assert max(lengths) <= 24
    with pytest.raises(UserError, match="max_prompt_tokens"):
        load_task("reasoning-gym:chain_sum", {}, str(tiny_model), 2)


class Hostile(gym.Worker):
    """The worker's own code around a generator whose scorer does what the response says."""

    SOURCE = """
import sys, types
sys.path.insert(0, {folder!r})
package, factory = types.ModuleType("reasoning_gym"), types.ModuleType("reasoning_gym.factory")
import dataclasses

@dataclasses.dataclass
class Config:
    seed: int = 0

class Generator:
    def __init__(self, seed):
        self.seed = seed
    def __getitem__(self, index):
        if self.seed == 9:
            raise ValueError("no such\\n puzzle")
        return {{"question": f"q{{index}}", "answer": None}}
    def __len__(self):
        return 7
    def score_answer(self, answer, entry):
        return eval(answer)

factory.DATASETS = {{"hostile": (Generator, Config)}}
factory.create_dataset, package.factory = lambda name, seed: Generator(seed), factory
sys.modules |= {{"reasoning_gym": package, "reasoning_gym.factory": factory}}
import reasoning_gym_worker
reasoning_gym_worker.main()
"""

    def command(self):
        script = importlib.util.find_spec("minivapo.tasks.reasoning_gym_worker").origin
        return [sys.executable, "-c", self.SOURCE.format(folder=script.rpartition("/")[0])]


@pytest.fixture
def hostile():
    """A task whose scorer evaluates the response, with half a second for a verdict."""
    return gym.ReasoningGym(Hostile("hostile", {}, time_limit=0.5), 1.0, str, bool)


def test_scorers_that_raise_hang_or_die_give_no_verdict(hostile, tmp_path):
    file = tmp_path / "written"
    cases = {
        "1.0": True,
        "0.99": False,
        "1 / 0": None,
        "len(range(10**9)) and [0 for i in range(10**12)]": None,  # processor time
        "__import__('os').abort()": None,
        f"open({str(file)!r}, 'w') and 1": None,
        f"__import__('os').system('touch {file}') + 1": None,
        "__import__('subprocess').run('true') and 1": None,
        "__import__('socket').create_connection(('127.0.0.1', 1), 1)": None,
        "print('{\"score\": 1.0}') or 0.0": False,
        "bytearray(2**40) and 1": None,
        "'text'": None,
        "float('nan')": False,
        "1": True,
    }
    problems = hostile.train_problems(0, len(cases), 0)
    begun = time.monotonic()
    assert hostile.judge(problems, list(cases)) == list(cases.values())
    assert time.monotonic() - begun < 60
    assert not file.exists()


def test_a_generator_that_keeps_failing_is_named_with_its_reason():
    task = gym.ReasoningGym(Hostile("hostile", {"seed": 9}), 1.0, str, bool)
    with pytest.raises(UserError, match=r"cannot make problems with .*seed.*ValueError: no such puzzle"):
        task.train_problems(0, 1, 0)


@pytest.mark.once
def test_a_scorer_that_sleeps_is_stopped_by_the_clock(hostile):
    p = hostile.train_problems(0, 1, 0)[0]
    hostile.worker.time_limit = 0.05  # ten times as long by the clock, and a second
    assert hostile.judge([p, p], ["__import__('time').sleep(60)", "1"]) == [None, True]


@pytest.mark.once
def test_past_its_time_only_what_is_undecided_has_no_verdict(hostile):
    p = hostile.train_problems(0, 1, 0)[0]
    begun = time.monotonic()
    answers = ["1", *["__import__('time').sleep(60)"] * 20]
    assert hostile.judge([p] * 21, answers, seconds=3.0) == [True, *[None] * 20]
    assert time.monotonic() - begun < 30
    assert hostile.judge([p], ["1"]) == [True]


def test_an_answer_that_reads_like_code_is_never_evaluated(hostile, monkeypatch):
    monkeypatch.setattr(gym, "EVALUATING", ("hostile",))
    p = hostile.train_problems(0, 1, 0)[0]
    assert hostile.judge([p] * 3, ["().__class__ and 1", "(lambda: 1)()", "1"]) == [False, False, True]


@given(st.text())
@example("Answer:")
@example("<answer></answer>")
def test_an_answer_is_found_in_any_text(text):
    assert gym.stated_answer(text) in text
    assert gym.stated_answer(f"{text}\nAnswer: 5") == "5" or "<answer>" in text


@given(st.lists(st.sampled_from(["<answer>", "</answer>", "a", " ", "\n"]), max_size=12).map("".join))
def test_the_last_tagged_answer_counts(text):
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    assert gym.stated_answer(text) == (tagged[-1] if tagged else text).strip()


@pytest.mark.parametrize(
    "piece", ["<answer>", "</answer>", "<answer>1", " ", "\n", "\t\n", "answer:", "\nAnswer: ", "final "]
)
def test_a_response_that_repeats_itself_is_read_at_once(piece):
    """Megabytes of it: a search to the end from every open tag would take hours."""
    begun = time.process_time()
    gym.stated_answer(piece * (2_000_000 // len(piece)))
    assert time.process_time() - begun < 5


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "reasoning_gym" else find(name, *a)
    )
    with pytest.raises(UserError, match=r"pip install .*\.\[real\]"):
        make_task("reasoning-gym:chain_sum")


def test_a_task_without_a_base_asks_for_a_model():
    with pytest.raises(UserError, match="--model"):
        load_task("reasoning-gym:chain_sum", {}, None, 64)


def test_options_come_from_flags_files_and_runs(tmp_path):
    words = ["--task-option", "max_terms=2", "--task-option", "seed=3", '--task-option=operators=["+", "-"]']
    args = read(["--task", "reasoning-gym:x", *words])
    assert task_options(args.task_option) == {"max_terms": 2, "seed": 3, "operators": ["+", "-"]}
    assert args.config.seed == 0

    path = tmp_path / "x.yaml"
    path.write_text("task: reasoning-gym:x\ntask-option:\n  max_terms: 2\n  operators: ['+']\nsteps: 3\n")
    args = read([str(path)])
    assert task_options(args.task_option) == {"max_terms": 2, "operators": ["+"]}
    assert args.config.steps == 3

    options = {"template": "chat", "max_terms": 2, "operators": ["+"]}
    info = {"preset": "vapo", "task": "reasoning-gym:x", "task_options": options, "model": "m", "critic": None}
    write_config(tmp_path / "run", args.config, info)
    args = recorded(tmp_path / "run")
    assert task_options(args.task_option, args.template) == options


@pytest.mark.parametrize("word", ["max_terms", "=3", "a b=2", "x=[1,"])
def test_an_option_that_is_not_key_value_is_refused(word):
    with pytest.raises(UsageError, match="--task-option"):
        task_options([word])


@pytest.mark.parametrize("name", ["chain", "gsm8k"])
def test_other_tasks_refuse_options_that_they_do_not_have(name):
    with pytest.raises(UserError, match="no option 'max_terms'"):
        make_task(name, max_terms=2)


def test_a_run_is_named_after_the_generator_but_not_after_a_path():
    assert task_label("reasoning-gym:chain_sum") == "reasoning-gym-chain_sum"
    assert task_label("jsonl:/some/where.jsonl") == "jsonl"


@real
def test_a_run_trains_resumes_and_is_evaluated_with_its_options(tiny_model, tmp_path, capsys):
    run = tmp_path / "run"
    small = "--batch-size 4 --mini-batch 4 --group-size 2 --max-new-tokens 4 --eval-problems 4 --value-pretrain-steps 0"
    words = ["train", "--task", "reasoning-gym:chain_sum", "--model", str(tiny_model), "--task-option", "max_terms=2"]
    command = [sys.executable, "-m", "minivapo", *words, "--steps", "1", "--run", str(run), *small.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "accelerator" not in done.stderr + done.stdout, "DeepSpeed, which only lies beside, says what it found"
    assert main(["eval", str(run), "--samples", "1", "--problems", "4"]) == 0
    assert list(run.glob("eval-reasoning-gym-chain_sum-*.json"))
    assert main(["train", "--resume", str(run)]) == 1
    assert "nothing left to train" in capsys.readouterr().err
