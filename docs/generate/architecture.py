"""docs/images/step.svg: the data flow of one step, and who brings what; a test checks that every name in it exists."""

from __future__ import annotations

from html import escape
from pathlib import Path

IMAGE = Path(__file__).parents[1] / "images" / "step.svg"
WIDTH, ROW, TOP = 980, 84, 92
STEPS = [  # function, what it does, what it adds to the rollout, which interfaces it uses
    ("collect", "sample and judge", "tokens, mask, rewards, correct", ("Task", "Sampler")),
    ("look", "what both networks say before the update", "old_logprobs, entropy, values", ("Learner",)),
    ("estimate_advantages", "GAE with two λ, or group advantages", "advantages, returns, lam", ("Engine.gae",)),
    ("update critic", "critic_loss over the mini-batches", "the critic's weights", ("Learner", "World")),
    ("update actor", "actor_loss over the mini-batches", "the actor's weights", ("Learner", "World")),
    ("sampler.sync", "hands the new weights over", "the sampler's weights", ("Sampler",)),
]
SIDES = [  # interface, laptop, cluster: what implements it, and how
    ("Task", ("minivapo.tasks", "embedded, data sets, yours"), ("minivapo.tasks", "the same")),
    ("Sampler", ("minivapo.local.LocalSampler", "KV cache"), ("scaled.sampler.VllmSampler", "vLLM")),
    ("Learner", ("minivapo.local.LocalLearner", "AdamW"), ("scaled.learner.DeepSpeedLearner", "ZeRO")),
    ("Engine.gae", ("minivapo.vapo.gae", "a loop"), ("scaled.gae.gae", "in parallel")),
    ("World", ("minivapo.interfaces.World", "one process"), ("scaled.world.DistributedWorld", "ranks")),
]


def short(name: str) -> str:
    """The last word of a name; of a function with its module, so that both `gae` can be told apart."""
    parts = name.split(".")
    return parts[-1] if parts[-1][0].isupper() or len(parts) == 2 else ".".join(parts[-2:])


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rounded rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" class="{kind}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float, kind: str = "flow") -> str:
    """A line with a head at its end."""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}" marker-end="url(#{kind})"/>'


STYLE = """
.page { fill: #fbfbf9; stroke: #d8d8d2 }
.step { fill: #dceaf7; stroke: #4575b4 }
.side { fill: #fdeedd; stroke: #d98a3d }
text { font: 13px system-ui, sans-serif; fill: #33363b }
.name { font: 600 14px ui-monospace, monospace; fill: #16181c }
.mono { font: 12px ui-monospace, monospace; fill: #33363b }
.head { font: 600 15px system-ui, sans-serif; fill: #16181c }
.flow { stroke: #4575b4; stroke-width: 2 }
.uses { stroke: #d98a3d; stroke-width: 1.4; stroke-dasharray: 5 4 }
"""


def svg() -> str:
    """The picture."""
    side_x, side_width, side_row = 690, 270, 96
    height = TOP + ROW * len(STEPS) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-labelledby="title description">',
        '<title id="title">One step of training</title>',
        '<desc id="description">Six calls in train_step, from collect to sampler.sync, each with what it adds to the '
        "rollout; beside them the interfaces that they use, with the laptop's and the cluster's part.</desc>",
        f"<style>{STYLE}</style><defs>",
        *(
            f'<marker id="{kind}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{colour}"/></marker>'
            for kind, colour in (("flow", "#4575b4"), ("uses", "#d98a3d"))
        ),
        "</defs>",
        box(1, 1, WIDTH - 2, height - 2, "page"),
        text(24, 34, "train_step in minivapo/vapo.py", "head"),
        text(24, 56, "One Rollout goes down; each call adds what is written beside its arrow."),
        text(side_x, 34, "the interfaces", "head"),
        text(side_x, 56, "laptop, then cluster"),
    ]
    middle = {name: TOP + i * side_row + 38 for i, (name, _, _) in enumerate(SIDES)}
    for i, (name, what, adds, uses) in enumerate(STEPS):
        y = TOP + i * ROW
        parts += [box(24, y, 320, 50, "step"), text(40, y + 21, name, "name"), text(40, y + 40, what)]
        last = i + 1 == len(STEPS)
        end = y + ROW - 4 if not last else y + ROW - 14
        parts += [arrow(184, y + 50, 184, end), text(196, y + 71, f"+ {adds}", "mono")]
        parts += [arrow(348, y + 25, side_x - 6, middle[side], "uses") for side in uses]
    parts.append(text(184, height - 16, "metrics of the step; engine.save may follow", "mono", "middle"))
    for i, (name, laptop, cluster) in enumerate(SIDES):
        y = TOP + i * side_row
        parts += [box(side_x, y, side_width, 76, "side"), text(side_x + 14, y + 22, name, "name")]
        for down, (what, how) in ((44, laptop), (63, cluster)):
            parts.append(text(side_x + 14, y + down, f"{short(what)}: {how}", "mono"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def pages() -> dict[Path, str]:
    """The picture's file."""
    return {IMAGE: svg()}
