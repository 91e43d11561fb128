"""What the notebooks say was measured is printed by their code from the committed sweeps; their exercises are sound."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from minivapo.study.sweeps import SWEEPS
from minivapo.study.sweeps.summary import read_sweep, sentence

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem[:2]: json.loads(path.read_text()) for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
ABOUT_A_TECHNIQUE = ("02", "03", "04", "05", "06", "07")


def sources(number, kind):
    return ["".join(cell["source"]) for cell in NOTEBOOKS[number]["cells"] if cell["cell_type"] == kind]


def printed(number):
    outputs = [out for cell in NOTEBOOKS[number]["cells"] for out in cell.get("outputs", [])]
    return "".join("".join(out["text"]) for out in outputs if out["output_type"] == "stream")


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_no_prose_states_a_result(number):
    """Numbers of points, seeds or critics come out of code, which reads them."""
    count = r"(?:[-+]?\d[\d.,]*|one|two|three|four|five|six|ten|several|paired)"
    told = rf"±|\b{count} (?:paired )?(?:points|seeds|critics|runs)\b"
    assert [found for text in sources(number, "markdown") for found in re.findall(told, text)] == []


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_no_output_is_a_warning(number):
    outputs = [out for cell in NOTEBOOKS[number]["cells"] for out in cell.get("outputs", [])]
    assert [out["text"] for out in outputs if out.get("name") == "stderr"] == []


def test_every_link_leads_to_a_page():
    for text in [text for number in NOTEBOOKS for text in sources(number, "markdown")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)\s#]+)", text):
            assert (ROOT / "notebooks" / target).exists(), target


@pytest.mark.parametrize("number", ABOUT_A_TECHNIQUE)
def test_a_notebook_prints_what_its_sweeps_say(number):
    """Out of date? python -m pytest --nbmake --overwrite notebooks/NAME.ipynb."""
    names = re.findall(r'= sweep\("([\w-]+)"\)', "\n".join(sources(number, "code")))
    assert names
    for name in names:
        rows = read_sweep(ROOT / f"docs/results/sweeps/{name}.csv")
        assert sentence(SWEEPS[name], rows) in printed(number), name


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_a_notebook_has_equations_exercises_and_a_map(number):
    prose, code = "\n".join(sources(number, "markdown")), "\n".join(sources(number, "code"))
    assert "$$" in prose and "(../docs/map.md)" in prose and "## Where this matters and where not" in prose
    assert prose.count("## Exercise") == code.count("\ncheck(") == code.count("# A solution") == 2
    assert code.count("\nlive(") == 1
    judges = re.findall(r"^def (judge_\w+)", code, re.M)
    for judge in judges:  # the solution is right, and something else is not
        assert re.search(rf"^assert {judge}\(.*\) is None", code, re.M), judge
        assert re.search(rf"^assert {judge}\(.*\) is not None", code, re.M), judge


def test_an_exercise_is_open_wrong_or_right(capsys):
    spec = importlib.util.spec_from_file_location("setup_notebook", ROOT / "notebooks/setup_notebook.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)

    def twice(answer):
        return None if answer(2) == 4 else f"twice 2 is not {answer(2)}."

    def unanswered(x):
        raise NotImplementedError

    for answer in (None, unanswered, lambda x: x + 1, lambda x: x / 0, lambda x: 2 * x):
        setup.check(answer, twice)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:2]] == ["not yet", "not yet"]
    assert said[2:] == ["twice 2 is not 3.", "it ends with ZeroDivisionError: division by zero", "right!"]
