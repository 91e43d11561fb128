"""Tasks of a user's own: found by name, remembered by runs, and what is wrong with them told in one line."""

import re
import sys
from pathlib import Path

import pytest

from minivapo.cli import main
from minivapo.interfaces import UserError
from minivapo.runs.folder import read_config, read_metrics
from minivapo.runs.origin import find_origin
from minivapo.tasks import load_task, make_task, task_label

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/write-a-task.md").read_text()
PARITY = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]


@pytest.fixture
def parity(tmp_path):
    """The page's example as a file."""
    file = tmp_path / "parity.py"
    file.write_text(PARITY)
    return file


@pytest.mark.once
def test_a_newcomer_trains_a_task_of_their_own(parity, tmp_path, monkeypatch):
    """The page's two commands, then eval and sample of the run, from another folder and after a move."""
    monkeypatch.chdir(tmp_path)
    made, trained = re.search(r"(minivapo make-base parity.*)\n(minivapo train.*parity.*)\n", PAGE).groups()
    small = "--steps 2 --batch-size 16 --mini-batch 8 --eval-problems 8 --max-new-tokens 4 --run run"
    assert main([*made.split()[1:-1], "3"]) == 0
    assert main([*trained.split()[1:], *small.split()]) == 0
    assert read_metrics(Path("run"))[-1]["step"] == 2
    (tmp_path / "moved").mkdir()
    Path("run").rename("moved/run")
    parity.rename(tmp_path / "moved" / "parity.py")
    monkeypatch.chdir(tmp_path / "moved")
    assert main(["sample", "run", "--count", "1"]) == 0
    assert main(["eval", "run", "--problems", "8"]) == 0
    assert main(["train", "--resume", "run", "--steps", "3"]) == 0
    assert read_metrics(Path("run"))[-1]["step"] == 3


def test_a_run_finds_its_file_again(parity, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from minivapo.runs.folder import write_config
    from minivapo.vapo import Config

    info = {"task": "parity.py:Parity", "model": "base", "critic": None, "task_options": {}}
    (tmp_path / "a").mkdir()
    write_config(tmp_path / "a" / "run", Config(), info)
    config, kept = read_config(tmp_path / "a" / "run")
    monkeypatch.chdir("/")
    assert find_origin(kept, config, tmp_path / "a" / "run").task == f"{parity}:Parity"


def test_a_class_of_a_package_and_its_parameters(tmp_path, monkeypatch):
    (tmp_path / "mine_of_tests").mkdir()
    (tmp_path / "mine_of_tests" / "things.py").write_text(
        "class Task:\n"
        "    def __init__(self, tokenizer=None, level=1):\n"
        "        self.tokenizer, self.level = tokenizer, level\n"
        "    train_problems = test_problems = judge = lambda self, *a: []\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = "mine_of_tests.things:Task"
    base = str(ROOT / "minivapo/tasks/bases/chain")
    task, model = load_task(name, {"level": 3, "template": None}, base, 9)
    assert (task.level, task.name, task.stop, model) == (3, "task", (), base)
    assert task.tokenizer.encode("1")
    assert task_label(name) == "task"
    with pytest.raises(UserError, match="no option 'depth'; its parameters: tokenizer, level"):
        make_task(name, depth=2)


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        ("x = 1\ny = 1 / 0\n", "t.py:Task", r"t\.py, line 2: ZeroDivisionError"),
        ("class Task:\n  def __init__(self):\n    self.x = nothing\n", "t.py:Task", r"t\.py, line 3: NameError"),
        ("def f(:\n", "t.py:Task", r"t\.py, line 1: SyntaxError"),
        ("import nowhere_to_be_found\n", "t.py:Task", r"t\.py, line 1: ModuleNotFoundError"),
        ("", "t.py:Task", "no class 'Task'"),
        ("class Task:\n  train_problems = test_problems = print\n", "t.py:Task", "no method judge"),
        *(
            (f"class Task:\n  train_problems = test_problems = judge = print\n  stop = {stop}", "t.py:Task", "stop = ")
            for stop in ("'end'", "('end', '')", "(1,)")
        ),
        ("", "other.py:Task", "there is no such file"),
        ("", "no_such_module_here:Task", "no task and no module 'no_such_module_here'"),
        ("", "gsm9k", r"choose one of .*FILE\.py:CLASS"),
        ("", "t.py:Not a name", "there is no task"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(code, name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("t.py").write_text(code)
    with pytest.raises(UserError, match=said) as told:
        make_task(name)
    assert "\n" not in str(told.value)


def test_a_task_without_a_base_says_how_to_make_one(parity, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"minivapo make-base FOLDER --task parity\.py:Parity"):
        load_task("parity.py:Parity", {}, None, 8)
