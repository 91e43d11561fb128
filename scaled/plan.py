"""`python -m scaled.plan CONFIG`: the door to the planner, which lives in `scaled.planning`."""

from scaled.planning.advice import plan
from scaled.planning.command import main

__all__ = ["main", "plan"]

if __name__ == "__main__":
    raise SystemExit(main())
