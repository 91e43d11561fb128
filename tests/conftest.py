"""What all tests share: shapes checked at run time, one thread, and a base model small enough to make on the spot."""

import dataclasses
import importlib.util
import os

import hypothesis
import jaxtyping
import pytest

# Every jaxtyping annotation of minivapo is checked by beartype, under pytest only. This comes before its import.
jaxtyping.install_import_hook("minivapo", "typecheck.check_shapes")

import torch  # noqa: E402
from browser import FLAGS, chromium, open_page  # noqa: E402

from minivapo.tasks.base import make_base  # noqa: E402
from minivapo.tasks.chain import Chain, ChainSpec  # noqa: E402
from minivapo.vapo import PRESETS, Config  # noqa: E402

torch.set_num_threads(1)

CI = os.environ.get("MINIVAPO_CI", "")
"""CI's environment, see `.ci/run`: readme, full, low or newest; empty elsewhere."""

# At the ends of the ranges it is other packages that are tested, not our mathematics.
EXAMPLES = 20 if CI in ("low", "newest") else 100
hypothesis.settings.register_profile("minivapo", deadline=None, max_examples=EXAMPLES)
hypothesis.settings.load_profile("minivapo")


def left_out(items):
    """What this machine cannot run: the tests, and a line that says how many they are and what they need.

    CI may leave out what DeepSpeed and vLLM run, where it does without them; the full environment leaves out nothing.
    """
    have_cluster = all(importlib.util.find_spec(name) for name in ("deepspeed", "vllm"))
    needs = {
        "scaled": (
            "DeepSpeed and vLLM",
            have_cluster or CI == "full",
            [item for item in items if item.get_closest_marker("cluster")],
        ),
        "real": (
            "reasoning-gym",
            importlib.util.find_spec("reasoning_gym") or CI == "full",
            [item for item in items if item.get_closest_marker("real")],
        ),
        "browser": (
            "Chromium",
            chromium() or CI,
            [item for item in items if "browser" in getattr(item, "fixturenames", ())],
        ),
    }
    lacking = [(name, what, tests) for name, (what, here, tests) in needs.items() if tests and not here]
    lines = [f"{name}: {len(tests)} tests need {what}; see CONTRIBUTING.md" for name, what, tests in lacking]
    return {item for *_, tests in lacking for item in tests}, lines


LINES = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)  # before -m deselects the same tests without a word
def pytest_collection_modifyitems(config, items):
    """Leaves out what this machine cannot run."""
    out, config.stash[LINES] = left_out(items)
    if out:
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=list(out))


def pytest_terminal_summary(terminalreporter, config):
    """Says so."""
    for line in config.stash.get(LINES, []):
        terminalreporter.write_line(line)


def fail_if_skipped(report):
    """In CI a skip is a failure: on a machine meant to run everything, nothing may go untested."""
    if CI and report.skipped:  # what is expected to fail is no test either
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"MINIVAPO_CI allows no skipped test: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Skips of a test."""
    fail_if_skipped((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """Skips of a whole file, by `importorskip` at its top: they end before any test of it is known."""
    fail_if_skipped((yield).get_result())


@pytest.fixture(scope="session")
def chain():
    """The chain task with short programs, so that responses are short."""
    return Chain(ChainSpec(max_steps=3, fillers=1, guess=0.4))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, chain):
    """A transformers folder: 30,000 parameters, trained for a second, right on some problems and wrong on most."""
    with torch.random.fork_rng():
        folder = tmp_path_factory.mktemp("base") / "tiny"
        return make_base(chain, folder, steps=40, batch=16, lr=1e-2, width=32, layers=2)


def small(preset: str = "vapo", **changes) -> Config:
    """A preset at a size that trains in a second."""
    size = {
        "batch_size": 16,
        "mini_batch": 8,
        "micro_batch": 3,
        "group_size": min(4, PRESETS[preset].group_size),
        "steps": 2,
        "value_pretrain_steps": min(2, PRESETS[preset].value_pretrain_steps),
        "reward_model_steps": 1,
        "warmup": 2,
        "max_new_tokens": 24,
        "eval_problems": 8,
        "actor_lr": 1e-3,
        "critic_lr": 2e-3,
    }
    return dataclasses.replace(PRESETS[preset], **(size | changes))


@pytest.fixture(scope="session", name="small")
def small_fixture():
    """`small(preset, **changes)`: see there."""
    return small


@pytest.fixture
def float64():
    """Tensors made without a dtype are float64 within the test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def browser():
    """Chromium; `left_out` leaves out what uses it where there is none."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def show(browser):
    """Opens a page from disk; its errors, policy violations and requests fail the test."""
    pages = []

    def open_(path, **options):
        pages.append(open_page(browser, path, **options))
        return pages[-1]

    yield open_
    for page in pages:
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        page.context.close()
