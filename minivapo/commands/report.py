"""`minivapo report`: one HTML file for one or several runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """Write a self-contained HTML report of one or several runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    out: Path | None = None
    """HTML file; default report.html in the first run."""


def run(args: Arguments) -> int:
    """Writes the file and says where it is."""
    from minivapo.show.report import make_report

    print(f"report: {make_report(list(args.runs), args.out)}")
    return 0
