"""`python -m scaled.plan CONFIG`: the planner, which lives in `scaled.planning`."""

from scaled.planning.plan import main, plan

__all__ = ["main", "plan"]

if __name__ == "__main__":
    raise SystemExit(main())
