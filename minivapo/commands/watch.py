"""`minivapo watch`: follows a run from another terminal."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """Follow a run that trains elsewhere."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""


def run(args: Arguments) -> int:
    """Shows the run's live view until it ends."""
    from minivapo.show.live import watch

    watch(args.run)
    return 0
