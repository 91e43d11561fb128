"""`minivapo notebooks`: copies the notebooks, and the measurements that they draw, beside the user."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from minivapo.errors import UserError

PACKAGE = Path(__file__).parents[1]
SHIPPED = PACKAGE / "notebooks"
"""Where a wheel has them, with `results/`; a checkout has them in `notebooks` and `docs/results`."""
READ = ("sweeps/*.csv", "table1.csv", "chain.csv")
"""Results that the notebooks read; pyproject.toml puts the same into the wheel."""


@dataclass(frozen=True)
class Arguments:
    """Copy the notebooks to a folder of yours, with all that they read."""

    folder: Annotated[Path, tyro.conf.Positional] = Path("notebooks")
    """Made if need be; no file in it is overwritten."""


def run(args: Arguments) -> int:
    """Copies what is not there yet, or nothing at all."""
    wanted = files()
    taken = [name for name in wanted if (args.folder / name).exists()]
    if taken:
        raise UserError(f"{args.folder / taken[0]} exists already; name another folder.")
    for name, source in wanted.items():
        target = args.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    count = sum(name.endswith(".ipynb") for name in wanted)
    print(f"{count} notebooks: {args.folder}; open them with `jupyter lab {args.folder}`")
    return 0


def files() -> dict[str, Path]:
    """Name below the user's folder -> file: notebooks, their set-up, and the results that they read."""
    notebooks, results = SHIPPED, SHIPPED / "results"
    if not SHIPPED.exists():
        notebooks, results = PACKAGE.parent / "notebooks", PACKAGE.parent / "docs/results"
    here = [path for kind in ("*.ipynb", "*.py", "*.mplstyle") for path in sorted(notebooks.glob(kind))]
    read = [path for pattern in READ for path in sorted(results.glob(pattern))]
    return {path.name: path for path in here} | {f"results/{path.relative_to(results)}": path for path in read}
