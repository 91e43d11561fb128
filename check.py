"""Everything that CI checks, in one command: style, types, tests, notebooks, documentation.

python check.py            all of it
python check.py style      only the steps named: style, types, tests, notebooks, docs
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time

PYTHON = [sys.executable, "-m"]
STEPS: dict[str, list[list[str]]] = {
    "style": [[*PYTHON, "ruff", "check", "."], [*PYTHON, "ruff", "format", "--check", "."]],
    "types": [[*PYTHON, "pyright"]],
    "tests": [[*PYTHON, "pytest", "--cov=minivapo", "--cov=scaled", "--cov-report=term:skip-covered"]],
    "notebooks": [[*PYTHON, "pytest", "--nbmake", "--nbmake-timeout=600", "notebooks", "-p", "no:cacheprovider"]],
    "docs": [[*PYTHON, "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html"]],
}


def main() -> int:
    """Runs the wanted steps to the end and names those that failed."""
    wanted = sys.argv[1:] or list(STEPS)
    unknown = set(wanted) - set(STEPS)
    if unknown:
        print(f"check.py: unknown step {', '.join(sorted(unknown))}; choose from {', '.join(STEPS)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted:
        if name == "docs" and importlib.util.find_spec("sphinx") is None and not os.environ.get("MINIVAPO_CI"):
            print("== docs: SKIPPED, not installed (pip install -e '.[docs]')", flush=True)
            continue
        begun = time.monotonic()
        for command in STEPS[name]:
            print(f"== {name}: {' '.join(command[2:])}", flush=True)
            if subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
                failed.append(name)
        print(f"== {name}: {time.monotonic() - begun:.0f} s", flush=True)
    print("== failed: " + ", ".join(dict.fromkeys(failed)) if failed else "== all passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
