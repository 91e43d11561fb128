"""What CI checks, in one command, two steps at a time where there are two cores.

python check.py             style, types, tests and notebooks
python check.py all         also what takes longer or needs more than the extra `test`: scaled, learning, docs
python check.py style docs  only the steps named
python check.py light       those tests alone that can depend on the versions of other packages
python check.py coverage    every test, and which lines none of them runs; a third slower
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

PYTHON = [sys.executable, "-m"]
PYTEST = [*PYTHON, "pytest", "-p", "no:cacheprovider", "--durations=10"]
CI = os.environ.get("MINIVAPO_CI", "")
STEPS: dict[str, list[list[str]]] = {  # in the order in which they start: quick ones, then the longest first
    "style": [
        [*PYTHON, "ruff", "check", "."],
        [*PYTHON, "ruff", "format", "--check", "."],
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint_imports; lint_imports()"],
    ],
    "types": [[*PYTHON, "pyright"]],
    "scaled": [[*PYTEST, "-m", "cluster or real"]],
    "tests": [[*PYTEST, "-m", "not slow and not cluster"]],
    "learning": [[*PYTEST, "-m", "slow"]],
    "light": [[*PYTEST, "-m", "not slow and not cluster and not once"]],
    "coverage": [[*PYTEST, "--cov=minivapo", "--cov=scaled", "--cov-report=term:skip-covered"]],
    "notebooks": [[*PYTEST, "--nbmake", "--nbmake-timeout=600", "notebooks"]],
    "docs": [[*PYTHON, "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html"]],
}
LATER = ("scaled", "learning", "docs")
"""Only by name or in `all`; CONTRIBUTING.md says what they need."""
AGAIN = ("light", "coverage")
"""Only by name: tests of other steps."""
stopped = threading.Event()


def main() -> int:
    """Runs the wanted steps to the end and names those that failed."""
    every = [name for name in STEPS if name not in AGAIN]
    wanted = sys.argv[1:] or [name for name in every if name not in LATER]
    if wanted == ["all"]:
        wanted = every
    unknown = set(wanted) - set(STEPS)
    if unknown:
        known = ", ".join(STEPS)
        print(f"check.py: unknown step {', '.join(sorted(unknown))}; choose from all, {known}", file=sys.stderr)
        return 2
    begun = time.monotonic()
    with ThreadPoolExecutor(1 if CI else min(2, os.cpu_count() or 1)) as lanes:  # CI runs two environments at once
        try:
            passed = dict(zip(wanted, lanes.map(run, wanted), strict=True))
        except KeyboardInterrupt:  # the steps that run were interrupted too; no other begins
            stopped.set()
            raise
    failed = [name for name in wanted if not passed[name]]
    if not sys.argv[1:]:
        print(f"== not asked for: {', '.join(LATER)} (python check.py all; see CONTRIBUTING.md)")
    print(f"== {'failed: ' + ', '.join(failed) if failed else 'all passed'}, {time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


def run(name: str) -> bool:
    """Runs the commands of a step, each line of their output behind the step's name; True if all succeed."""
    begun, passed = time.monotonic(), True
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    for command in STEPS[name]:
        if stopped.is_set():
            return False
        say(name, f"== {' '.join(command[2:])}")
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, env=env, text=True, errors="replace", **pipes) as job:
            assert job.stdout is not None
            for line in job.stdout:
                say(name, line.rstrip("\n"))
        passed &= job.returncode == 0
    say(name, f"== {'passed' if passed else 'FAILED'}, {time.monotonic() - begun:.0f} s")
    return passed


def say(name: str, line: str) -> None:
    """Prints a whole line at once, so that steps do not mix within a line."""
    sys.stdout.write(f"{name:<9} | {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
