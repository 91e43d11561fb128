"""docs/api/: a page for each room of the code, with a section for each of its modules, drawn from their docstrings."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
ROOMS = {
    "algorithm": "The algorithm and its contract",
    "models": "Models, critics and the engine on one device",
    "tasks": "Tasks and their verifiers",
    "runs": "Runs on disk",
    "show": "Report, live view, loggers",
    "study": "Studies",
    "commands": "Commands and their options",
    "cluster": "The engine on DeepSpeed and vLLM",
    "planning": "The planner of cluster runs",
}
ALGORITHM = ("vapo", "interfaces", "responses", "measure", "errors")
"""In the order of reading."""


def room_of(module: str) -> str:
    """The room whose page a module stands on."""
    package, *rest = module.split(".")
    if package == "scaled":
        return "planning" if rest[:1] in (["planning"], ["plan"]) else "cluster"
    if not rest or rest[0] in ALGORITHM:
        return "algorithm"
    if rest[0] in ("commands", "options", "cli"):
        return "commands"
    return rest[0] if rest[0] in ROOMS else "tasks" if rest[0] == "math_tasks" else "models"


def modules() -> list[str]:
    """Every module, those of the algorithm first, in the order of reading."""
    files = [file.relative_to(ROOT) for name in ("minivapo", "scaled") for file in (ROOT / name).rglob("*.py")]
    names = {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}
    first = [f"minivapo.{name}" for name in ALGORITHM]
    return [*first, *sorted(name for name in names - set(first) if not name.endswith("__main__"))]


def page(room: str, names: list[str]) -> str:
    """The page of a room."""
    parts = [f"# {ROOMS[room]}\n"]
    parts += [f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n" for name in names]
    return "\n".join(parts)


def pages() -> dict[Path, str]:
    """Path -> text."""
    rooms = {room: [name for name in modules() if room_of(name) == room] for room in ROOMS}
    links = "\n".join(f"api/{room}" for room in ROOMS)
    index = (
        "# API\n\nEvery module of the code, by the room that it lives in ([the architecture](architecture.md) says who "
        f"may\nimport whom).\n\n```{{toctree}}\n:maxdepth: 1\n\n{links}\n```\n"
    )
    return {DOCS / "api.md": index} | {DOCS / f"api/{room}.md": page(room, names) for room, names in rooms.items()}
