"""The verifier: verdicts, hostile input, time bounds, worker processes. Long: one verifier, every way to break it."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify")

from grade_cases import FRAGMENTS, ROWS

from minivapo import responses as responses_module
from minivapo.interfaces import Problem
from minivapo.tasks import answers
from minivapo.tasks.answers import server
from minivapo.tasks.answers.compare import equal
from minivapo.tasks.answers.extract import extract_answer
from minivapo.tasks.math import LoadReport, MathTask
from minivapo.tasks.verifier import Verifier, grade

RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
LONG = r"\boxed{(x+y+z)^{5000}}"  # keeps sympy busy for longer than anyone waits, against x+18


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=1, time_limit=20) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def verdicts(verifier):
    return verifier.grade_many([row[1] for row in ROWS], [row[2] for row in ROWS])


# ------------------------------------------------------------------------------------------------ verdicts


def test_the_table_is_large_enough():
    assert len(ROWS) >= 250
    assert 90 <= sum(row[3] for row in ROWS) <= len(ROWS) - 90
    assert len({row[1:3] for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda i: f"{i}-{ROWS[i][0]}")
def test_case(number, verdicts):
    _, response, answer, verdict = ROWS[number]
    got = verdicts[number]
    assert (got is True) is verdict, f"{response!r} against {answer!r}"
    if answer:
        assert got is not None


def test_only_a_missing_gold_has_no_verdict(verdicts):
    assert [row[2] for row, got in zip(ROWS, verdicts, strict=True) if got is None] == [""]


def test_grade_is_the_same_verdict():
    rows = ROWS[:: len(ROWS) // 25]
    assert [grade(row[1], row[2]) for row in rows] == [row[3] for row in rows]


SPELLINGS = [
    lambda n, d: f"{n}/{d}",
    lambda n, d: rf"\frac{{{n}}}{{{d}}}",
    lambda n, d: rf"\dfrac{{{3 * n}}}{{{3 * d}}}",
    lambda n, d: rf"${2 * n}/{2 * d}$",
    lambda n, d: f"-{-n}/{d}" if n < 0 else f"+{n}/{d}",
    lambda n, d: f"x = {n}/{d}",
    lambda n, d: f"{n}/{d} meters",
]


@settings(max_examples=300, **RELAXED)
@given(
    st.integers(-200, 200), st.integers(1, 60), st.integers(-200, 200), st.integers(1, 60),
    st.sampled_from(SPELLINGS), st.sampled_from(SPELLINGS), st.booleans(),
)  # fmt: skip
def test_fractions_are_equal_exactly_when_their_values_are(a, b, c, d, spell, spell_gold, same):
    if same:
        c, d = a, b
    verdict = equal(spell(a, b), spell_gold(c, d))
    assert verdict is (Fraction(a, b) == Fraction(c, d))


@settings(max_examples=300, **RELAXED)
@given(st.integers(-(10**12), 10**12), st.integers(0, 5), st.booleans())
def test_decimals_are_exact(number, places, thousands):
    value = Fraction(number, 10**places)
    whole, part = divmod(abs(number), 10**places)
    sign = "-" if number < 0 else ""
    text = f"{sign}{whole:,}" if thousands else f"{sign}{whole}"
    text += f".{part:0{places}d}" if places else ""
    assert grade(rf"\boxed{{{text}}}", f"{value.numerator}/{value.denominator}")
    off = value + Fraction(1, 10**places)
    assert not grade(rf"\boxed{{{text}}}", f"{off.numerator}/{off.denominator}")


# ------------------------------------------------------------------------------------------------- hostile

ANYTHING = st.text(st.characters(exclude_categories=()), max_size=60)
PIECES = st.lists(
    st.sampled_from(FRAGMENTS.split()) | st.sampled_from([" ", "\n", "\x00", "\ud800", "\u200b", "٣", "²", "½", "√"]),
    max_size=14,
).map("".join)


@settings(max_examples=600, **RELAXED)
@given(ANYTHING | PIECES, ANYTHING | PIECES | st.sampled_from(["18", r"\frac{1}{2}", "(1,2)", "[1,2)", "x+1", "5 cm"]))
def test_the_part_without_algebra_never_fails_on_text(text, gold):
    start = time.process_time()
    answer = extract_answer(text)
    assert answer is None or (answer and isinstance(answer, str))
    for pred in (answer or "", text):
        with contextlib.suppress(answers.Unreadable):
            assert equal(pred, gold) in (True, False, None)
    assert time.process_time() - start < 1


@settings(max_examples=120, **RELAXED)
@given(ANYTHING | PIECES, PIECES | st.sampled_from(["18", r"\frac{1}{2}", "(1,2)", "[1,2)", "x+1"]))
def test_grade_always_returns_a_bool(text, gold):
    for response in (text, rf"\boxed{{{text}}}"):
        assert type(grade(response, gold)) is bool


@pytest.mark.parametrize("bad", [None, 5, 1.5, b"18", ["18"], object()])
def test_grade_takes_what_is_not_text_for_wrong(bad):
    assert grade(bad, "18") is False
    assert grade("18", bad) is False


MEGABYTES = [
    " " * 5_000_000,
    "answer" * 800_000,
    "answer is " * 500_000,
    "answer" + " " * 4_000_000 + "is",
    "Answer:" + "\n" * 4_000_000,
    "Answer: " * 500_000,
    "####" * 1_000_000,
    "#### 1" + "0" * 4_000_000,
    "#### " + "1," * 2_000_000,
    "\\boxed{" * 700_000,
    "\\boxed{" + "{" * 4_000_000,
    "\\boxed{" + "1" * 4_000_000 + "}",
    "<answer>" * 500_000,
    "$" * 4_000_000,
    "\\" * 4_000_000,
    "\x00\ud800" * 2_000_000,
]


@pytest.mark.parametrize("number", range(len(MEGABYTES)))
def test_megabytes_take_well_under_a_second(number):
    start = time.process_time()
    assert grade(MEGABYTES[number], "18") is False
    assert time.process_time() - start < 1


ANSWERS_OF_A_THOUSAND = [
    "(" * 900,
    "1," * 499,
    "(1," * 300,
    "1=" * 499,
    r"\frac" * 199,
    r"\frac{1}" * 120,
    "{" * 20 + "1," * 400 + "}" * 20,
    "1 " * 499,
    "1,234" * 190,
    "a" * 999,
    "a " * 499,
    "sqrt(" * 190,
    r"\text{" * 160,
    r"\\ab" * 240,
    r"x\pm" * 240,
    "<" * 999,
    r"\cup" * 240,
    "9" * 999,
    "9" * 400 + "e999",
    "-" * 999,
    ".5" * 400,
    "cm " * 330,
    "1 " + "a" * 990,
    "(1,2)" * 190,
    ",".join("({1,2},[3,4])" for _ in range(70)),
]


@pytest.mark.parametrize("number", range(len(ANSWERS_OF_A_THOUSAND)))
def test_the_longest_answers_are_compared_quickly(number):
    text = ANSWERS_OF_A_THOUSAND[number]
    for pred, gold in ((text, "18"), ("18", text), (text, text[:-1] + "7"), (text, text[::-1])):
        start = time.process_time()
        with contextlib.suppress(answers.Unreadable):
            equal(pred, gold)
        assert time.process_time() - start < 1


def test_python_in_an_answer_is_never_run(tmp_path, verifier):
    flag = tmp_path / "ran"
    code = f"__import__('pathlib').Path('{flag}').touch()"
    for text in (code, rf"\text{{{code}}}", f"x + {code}", f"({code}, 2)", f"f({code})"):
        verifier.grade_many([rf"\boxed{{{text}}}", f"Answer: {text}"], ["x+1", r"\sqrt{2}"])
    assert not flag.exists()


# ----------------------------------------------------------------------------------------- worker processes


def workers_of(verifier):
    """Process ids of the workers: children of the verifier's own process."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = place.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == verifier.algebra.process.pid and state != "Z":
                found.append(int(place.parent.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


def test_hostile_answers_end_at_the_limit_and_the_rest_goes_on():
    towers = [LONG, LONG.replace("5000", "5001")]
    golds = ["x+18", "x+18"]
    with Verifier(workers=1, time_limit=0.5) as verifier:
        verifier.grade_many([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"])  # the worker is up
        got = verifier.grade_many([*towers, r"\boxed{\sqrt{8}}"], [*golds, r"2\sqrt{2}"])
    assert got == [None, None, True]
    assert verifier.reasons["time limit"] + verifier.reasons["memory"] == 2


@pytest.mark.once
def test_the_kernel_stops_a_worker_in_a_c_call_by_itself():
    """A worker left alone with one huge multiplication ends by itself."""
    code = """if True:
        from minivapo.tasks.answers import server
        server.same_by_algebra = lambda pred, gold: pow(7, 10**9) == 0
        server.compare("x+1", "y+1", 0.5)
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(server.__file__).parents[3])},
        capture_output=True,
        timeout=300,
    )
    assert -done.returncode == signal.SIGPROF, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 15  # torch's import, and half a second


@pytest.mark.once
def test_one_timeout_is_paid_once_per_group():
    with Verifier(workers=1, time_limit=0.5) as verifier:
        got = verifier.grade_many([LONG] * 16, ["x+18"] * 16)
        assert got == [None] * 16
        assert verifier.reasons == {"time limit": 16}


def algebra(count):
    return [rf"\boxed{{{n}\sqrt{{8}}}}" for n in range(2, count + 2)], [
        rf"{2 * n}\sqrt{{2}}" for n in range(2, count + 2)
    ]


@needs_proc
def test_a_killed_worker_is_replaced_and_no_verdict_is_lost():
    responses, golds = algebra(60)
    with Verifier(workers=1, time_limit=2) as verifier:
        assert verifier.grade_many([r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"]) == [True]
        (victim,) = workers_of(verifier)
        threading.Timer(0.05, os.kill, (victim, signal.SIGKILL)).start()
        assert verifier.grade_many(responses, golds) == [True] * 60
        assert not verifier.reasons
        assert victim not in workers_of(verifier)


@pytest.mark.once
@needs_proc
def test_workers_killed_while_idle_are_replaced():
    with Verifier(workers=2, time_limit=20) as verifier:
        for root in (3, 5, 7):
            pairs = [rf"\boxed{{{root}\sqrt{{12}}}}"], [rf"{2 * root}\sqrt{{3}}"]
            assert verifier.grade_many(*pairs, seconds=120) == [True]  # long before a hang would end by itself
            for victim in workers_of(verifier) if root == 3 else [verifier.algebra.process.pid]:
                os.kill(victim, signal.SIGKILL)
        assert not verifier.reasons


@needs_proc
def test_an_answer_that_kills_two_workers_has_no_verdict():
    with Verifier(workers=1, time_limit=60) as verifier:
        verifier.grade_many([r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"])
        done = threading.Event()

        def kill_whoever_works_hard():
            while not done.is_set():
                for worker in workers_of(verifier):
                    with contextlib.suppress(OSError):
                        used = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[11])
                        if used > os.sysconf("SC_CLK_TCK"):  # a second; the other answer takes a tenth of it
                            os.kill(worker, signal.SIGKILL)
                time.sleep(0.02)

        killer = threading.Thread(target=kill_whoever_works_hard)
        killer.start()
        try:
            got = verifier.grade_many([LONG, r"\boxed{\sqrt{8}}"], ["x+18", r"2\sqrt{2}"])
        finally:
            done.set()
            killer.join()
    assert got == [None, True]
    assert verifier.reasons == {"died": 1}


@pytest.mark.once
def test_a_second_chance_ends_as_a_first_one_would(tmp_path):
    """A worker killed once on an answer that cannot be decided: that is the reason, not the death."""
    code = f"""
    import multiprocessing, os, signal
    from pathlib import Path
    from pebble import ProcessPool
    from minivapo.tasks.answers import Undecided, server
    def killed_then_undecided(pred, gold):
        if not Path("{tmp_path}/flag").exists():
            Path("{tmp_path}/flag").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        raise Undecided
    server.same_by_algebra = killed_then_undecided
    with ProcessPool(1, context=multiprocessing.get_context("fork")) as pool:
        print(list(server.judge(pool, [("x+1", "y+1")], 5.0, set())))
    """
    done = run_python(code)
    assert done.stdout.strip() == "[(0, None, 'undecided')]", done.stderr


@pytest.mark.once
@needs_proc
def test_an_answer_that_is_too_slow_after_a_kill_has_that_reason():
    with Verifier(workers=1, time_limit=1) as verifier:
        verifier.grade_many([r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"])
        threading.Timer(0.3, os.kill, (*workers_of(verifier), signal.SIGKILL)).start()
        assert verifier.grade_many([LONG], ["x+18"]) == [None]
        assert verifier.reasons == {"time limit": 1}


@pytest.mark.once
def test_workers_that_cannot_start_are_errors_not_a_hang():
    with Verifier(workers=2, memory_limit=2**24) as verifier:
        responses, golds = algebra(3)
        assert verifier.grade_many([*responses, "Answer: 5"], [*golds, "5"]) == [None, None, None, True]
        assert verifier.reasons == {"no worker": 3}


def test_a_forked_child_starts_a_process_of_its_own(verifier):
    verifier.grade_many([r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"])
    child = os.fork()
    if child == 0:
        got = verifier.grade_many([r"\boxed{\sqrt{45}}"], [r"3\sqrt{5}"])
        verifier.algebra.close()
        os._exit(0 if got == [True] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert verifier.grade_many([r"\boxed{\sqrt{80}}"], [r"4\sqrt{5}"]) == [True]


def test_an_unreadable_gold_is_an_error_of_the_verifier(verifier):
    before = verifier.reasons["gold"]
    golds = [r"\begin{tabular}{c} 1 \end{tabular}", "(" * 60, "", "1" * 2000]
    assert verifier.grade_many([r"\boxed{\sqrt{2}}"] * 4, golds) == [None] * 4
    assert verifier.reasons["gold"] == before + 4
    assert verifier.grade_many(["Answer: " + golds[0]], golds[:1]) == [True]  # verbatim


def test_other_threads_may_grade(verifier):
    got = []
    responses, golds = algebra(4)
    threads = [threading.Thread(target=lambda: got.append(verifier.grade_many(responses, golds))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[True] * 4] * 3


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
def test_a_worker_loads_neither_torch_nor_the_package(verifier):
    verifier.grade_many([r"\boxed{\sqrt{20}}"], [r"2\sqrt{5}"])
    loaded = Path(f"/proc/{verifier.algebra.process.pid}/maps").read_text()
    assert "python" in loaded
    assert "torch" not in loaded


def run_python(code):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)


@pytest.mark.once
@needs_proc
def test_workers_do_not_outlive_a_killed_parent():
    code = """
    import os, signal, sys, threading
    from minivapo.tasks.verifier import Verifier
    idle, busy = Verifier(workers=1), Verifier(workers=1, time_limit=1.0)
    for verifier in (idle, busy):
        verifier.grade_many([r"\\boxed{\\sqrt{8}}"], [r"2\\sqrt{2}"])
        print(verifier.algebra.process.pid, flush=True)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
    busy.grade_many([r"\\boxed{9^{9^{9^9}}}"], ["18"])
    """
    done = run_python(code)
    assert done.returncode == -signal.SIGKILL, done.stderr
    sessions = [int(line) for line in done.stdout.split()]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(map(is_running, sessions)):
        time.sleep(0.05)
    assert len(sessions) == 2
    assert not any(map(is_running, sessions))


def is_running(session):
    """Whether the process or one of its workers is still there."""
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = place.read_text().rpartition(")")[2].split()[:4]
            if int(number) == session and state != "Z":
                return True
    return False


def test_import_is_light_and_a_missing_package_is_named():
    code = """
    import sys
    import minivapo.math_tasks, minivapo.tasks.verifier
    print(sorted({"math_verify", "sympy", "datasets", "pebble"} & set(sys.modules)))
    sys.modules["math_verify"] = None
    for use in (minivapo.tasks.verifier.Verifier, lambda: minivapo.math_tasks.grade("18", "18")):
        try:
            use()
        except ImportError as error:
            print(error)
    """
    done = run_python(code)
    message = "the mathematics tasks need math_verify: pip install -c constraints.txt -e '.[math]' in the checkout"
    assert done.stdout.splitlines() == ["[]", message, message], done.stderr


@pytest.mark.once
def test_slow_answers_cost_themselves_only():
    """Power towers, which nobody can work out, among answers that need algebra or not."""
    towers = [rf"\boxed{{{n}^{{9^{{9^9}}}}}}" for n in range(2, 10)]
    responses, golds = algebra(28)
    ordinary = [f"Answer: {n}" for n in range(28)]
    everything = [*towers, *responses, *ordinary], ["18"] * 8 + golds + [str(n) for n in range(28)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with Verifier() as verifier:
        assert verifier.grade_many(*everything) == [None] * 8 + [True] * 56
        assert verifier.reasons.total() == 8
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 15  # seconds; most are imports


@pytest.mark.once
def test_past_its_time_only_what_is_undecided_has_no_verdict():
    hard = [rf"\boxed{{(x+y+z)^{{{n}}}}}" for n in range(5000, 5008)]
    easy = [f"Answer: {n}" for n in range(8)]
    with Verifier(workers=1, time_limit=60) as verifier:
        verifier.grade_many([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"])  # it is up
        start = time.monotonic()
        got = verifier.grade_many([*hard, *easy], ["x+18"] * 8 + [str(n) for n in range(8)], seconds=2.0)
        assert time.monotonic() - start < 30
        assert got == [None] * 8 + [True] * 8
        assert verifier.reasons == {"time limit": 8}
        assert verifier.grade_many([r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"]) == [True]


def test_the_time_of_a_batch_is_what_the_run_allows():
    """A slow answer never ends the run: the task's judge is told how long it has."""
    told = []

    class Slow:
        def grade_many(self, responses, answers, seconds):
            told.append(seconds)
            return [True] * len(responses)

    task = MathTask("slow", [], [], LoadReport(), Slow())
    assert responses_module.judge(task, [Problem("p", "18", "1")], ["18"], timeout=100.0) == [True]
    assert told == [90.0]
