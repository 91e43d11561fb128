"""What happened in a run, in one paragraph: the numbers of its metrics as sentences."""

from __future__ import annotations

import itertools
import math
from typing import Any

from minivapo.show.run_files import Run, read_held_out
from minivapo.show.text import duration, share

Line = dict[str, Any]


def story(run: Run) -> str:
    """A paragraph for somebody who has not seen the run; empty before its first step.

    Nothing is in it that is not in metrics.jsonl and config.json.
    """
    steps = [line for line in run.metrics if line.get("step") and get(line, "reward/accuracy") is not None]
    if not steps:
        return ""
    whole = (cost(run, steps[-1]), accuracy(run, steps[-1]))
    return " ".join(filter(None, (*whole, lengths(steps), entropy(steps), critic(steps), clipped(steps))))


def before_and_after(run: Run, most: int = 3) -> tuple[str, list[tuple[Line, Line]]]:
    """Responses of the base and of the trained policy to the same held-out problems.

    Args:
        run: with a held_out.jsonl.
        most: pairs wanted. Those come first whose verdict changed, for the better and for the worse in turn.

    Returns:
        A sentence that says how many of all verdicts changed, and the pairs; empty without two evaluations.
    """
    pairs = list(zip(*read_held_out(run), strict=True))
    if not pairs:
        return "", []
    right = [sum(line.get("correct") is True for line in side) for side in zip(*pairs, strict=True)]
    gained = [p for p in pairs if p[1].get("correct") is True and p[0].get("correct") is not True]
    lost = [p for p in pairs if p[0].get("correct") is True and p[1].get("correct") is not True]
    same = [p for p in pairs if p not in gained and p not in lost]
    turns = [p for turn in itertools.zip_longest(gained, lost) for p in turn if p is not None]
    text = (
        f"Of {len(pairs)} held-out problems the base policy solved {right[0]} and the policy after step "
        f"{pairs[0][1]['step']} {right[1]}: {len(gained)} gained, {len(lost)} lost. The random numbers were the same. "
        "Those whose verdict changed come first, so the ones below are no fair sample."
    )
    return text, [*turns, *same][:most]


def cost(run: Run, last: Line) -> str:
    """Steps, responses and time."""
    samples = get(last, "samples")
    details = [f"{samples:,.0f} responses"] if samples else []
    details += [duration(run.seconds)] if run.seconds else []
    steps = f"{last['step']} step{'' if last['step'] == 1 else 's'} of training"
    return f"{steps} took {', '.join(details)}." if details else f"{steps}."


def accuracy(run: Run, last: Line) -> str:
    """From the base policy to the last evaluation, with an interval where each problem had one response."""
    evaluated = [line for line in run.metrics if get(line, "eval/accuracy") is not None]
    if len(evaluated) < 2 or not evaluated[-1].get("step"):
        return f"{share(last['reward/accuracy'])} of the responses of the last step were correct."
    before, after = evaluated[0]["eval/accuracy"], evaluated[-1]["eval/accuracy"]
    text = f"Held-out accuracy {verb(before, after, 'rose', 'fell', 1)} from {share(before)} to {share(after)}"
    problems = run.config.get("eval_problems")
    if not isinstance(problems, int) or problems < 1 or run.config.get("eval_samples") != 1:
        return f"{text}."
    from scipy.stats import binomtest  # half a second, only where a report needs it

    low, high = binomtest(round(after * problems), problems).proportion_ci(method="wilson")
    return f"{text} (95 % interval over {problems} problems: {share(low)} to {share(high)})."


def lengths(steps: list[Line]) -> str:
    """How long responses were, and how many were cut."""
    before, after = get(steps[0], "response/length"), get(steps[-1], "response/length")
    if before is None or after is None:
        return ""
    cut = get(steps[-1], "response/truncated")
    limit = f", and {share(cut)} reached the length limit" if cut else ""
    return (
        f"Responses {verb(before, after, 'grew', 'shrank')} from {before:.0f} to {after:.0f} tokens on average{limit}."
    )


def entropy(steps: list[Line]) -> str:
    """How freely the policy chooses."""
    before, after = get(steps[0], "policy/entropy"), get(steps[-1], "policy/entropy")
    if before is None or after is None:
        return ""
    moved = verb(before, after, "rose", "fell")
    return f"The policy's entropy {moved} from {before:.2f} to {after:.2f} nats per token."


def critic(steps: list[Line]) -> str:
    """What the value model knew of the outcomes."""
    seen = [x for x in (get(line, "value/explained_variance") for line in steps) if x is not None]
    if not seen:
        return ""
    return (
        f"The value model explained {share(seen[0])} of the variance of the outcomes in the first step and "
        f"{share(seen[-1])} in the last."
    )


def clipped(steps: list[Line]) -> str:
    """Whether the clip was felt."""
    most = max((get(line, "actor/clip_high") or 0.0 for line in steps), default=0.0)
    return f"At most {share(most)} of a step's tokens were clipped above." if most else "No token was clipped above."


def get(line: Line, name: str) -> float | None:
    """A metric, if the line has it as a finite number."""
    x = line.get(name)
    return float(x) if isinstance(x, int | float) and math.isfinite(x) else None


def verb(before: float, after: float, more: str, less: str, factor: float = 1.1) -> str:
    """The verb for a change, which counts from a factor on."""
    return more if after > factor * before else less if after < before / factor else "went"
