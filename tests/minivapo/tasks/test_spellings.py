"""Right answers in many spellings, and wrong ones that look nearly right."""

import pytest

pytest.importorskip("math_verify")

from grade_spellings import CASES, FAMILIES, TRAPS

from minivapo.tasks.verifier import Verifier


@pytest.fixture(scope="module")
def verdicts():
    with Verifier(workers=1, time_limit=20) as verifier:
        texts, golds = [response for _, response, _ in CASES], [gold for *_, gold in CASES]
        traps = [response for response, _ in TRAPS], [gold for _, gold in TRAPS]
        yield verifier.grade_many(texts, golds), verifier.grade_many(*traps)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_spelling_of_a_right_answer_is_accepted(family, verdicts):
    wrong = [case[1:] for case, got in zip(CASES, verdicts[0], strict=True) if case[0] == family and got is not True]
    assert wrong == []


def test_no_wrong_answer_is_accepted(verdicts):
    assert [trap for trap, got in zip(TRAPS, verdicts[1], strict=True) if got is not False] == []


def test_there_are_more_than_550_spellings():
    assert len(set(CASES)) == len(CASES) > 550
