"""locks: open a row of locks, each with the key that fits its picture; one wrong key and the row stays shut.

The text itself says after every key whether it turned (`ok`) or not (`no`), as somebody writes who checks each
step. So a value model needs one fact to see a slip, and the value of any prefix can be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minivapo.interfaces import Problem
from minivapo.tasks.embedded import EmbeddedTask, Recipe

LABELS = tuple("ABCDEFGHIJKL")
EASY = ("ant", "bat", "bee", "cat", "cod", "cow", "crab", "crow", "deer", "dog", "dove", "duck")
"""Pictures for which demonstrations nearly always take the right key."""
HARD = ("elk", "fish", "fox", "frog", "goat", "hare", "hawk", "hen", "lion", "moth", "mouse", "owl")
"""Pictures for which they mostly do not."""
PICTURES = EASY + HARD
KEYS = (
    *("amber", "ash", "bone", "brass", "bronze", "clay", "coal", "copper", "glass", "gold", "horn", "iron"),
    *("ivory", "jade", "lead", "oak", "onyx", "pearl", "pine", "ruby", "silk", "silver", "steel", "tin"),
)
NEUTRAL = tuple(
    tuple(words.split())
    for words in (
        "hm so well now right fine alright okay",
        "let first next then here again also still",
        "me us you one we it they all",
        "see look think check try find get take",
        "this that what which how where when why",
        "door room hall wall gate way box case",
        "is was seems looks feels stays stands goes",
        "very quite rather really maybe surely just only",
    )
)
"""Neutral words: place in the line -> choices, all alike. Each place has its own, so nothing has to be counted."""
PAUSE = tuple(tuple(f"{word}{place}" for word in ("turn", "wait", "push", "pull")) for place in range(1, 13))
"""The same, between a key and the word that says whether it turned."""

_order = np.random.default_rng(5).permutation(len(KEYS))
RIGHT: dict[str, str] = dict(zip(PICTURES, (KEYS[i] for i in _order), strict=True))
"""Picture -> the key that fits."""
WRONG: dict[str, str] = dict(zip(PICTURES, (KEYS[i] for i in np.roll(_order, 7)), strict=True))
"""Picture -> the key that demonstrations take instead: the same keys, so that no key is wrong everywhere."""


@dataclass(frozen=True)
class LocksSpec:
    """The constants of the task."""

    min_locks: int = 2
    """Locks in the shortest row."""
    max_locks: int = 7
    """Locks in the longest row."""
    talk: tuple[int, ...] = (3, 8)
    """Neutral words before each lock: the prompt names one of these numbers."""
    delay: tuple[int, ...] = (0,)
    """Words between a key and `ok` or `no`: the prompt names one of these numbers."""
    easy: float = 0.95
    """Share of easy pictures for which a demonstration takes the right key."""
    hard: float = 0.4
    """The same for hard pictures: greedy decoding takes the wrong key."""
    give_up: float = 0.02
    """Chance, before each lock, that a demonstration stops."""


class Locks(EmbeddedTask):
    """Open 2 to 7 locks in a row.

    Prompt: `talk3 delay0 A fox B hen ?`. Response: for each lock three neutral words, its label, its picture, a
    key, and whether it turned: `hm let me A fox gold ok right then we B hen tin ok`. Right if every word is.
    """

    recipe = Recipe(steps=2500, lr=4e-3, width=48, layers=2, critic=True)
    exact_values = True
    about = (
        "A row of locks, each marked with a picture; the key for each picture has to be learned. One wrong key and the "
        "row stays shut, however well it goes on."
    )

    def __init__(self, spec: LocksSpec | None = None, name: str = "locks") -> None:
        self.spec, self.name = spec or LocksSpec(), name
        talk = (f"talk{n}" for n in range(len(NEUTRAL) + 1))
        delay = (f"delay{n}" for n in range(len(PAUSE) + 1))
        words = (*(w for place in NEUTRAL for w in place), *(w for place in PAUSE for w in place))
        self.words = (*PICTURES, *KEYS, *LABELS, *talk, *delay, *words, "ok", "no", "?")

    def make(self, rng: np.random.Generator) -> Problem:
        """A row of min_locks to max_locks pictures."""
        spec = self.spec
        talk, delay = (choices[int(rng.integers(len(choices)))] for choices in (spec.talk, spec.delay))
        count = int(rng.integers(spec.min_locks, spec.max_locks + 1))
        return self.problem(talk, delay, [PICTURES[i] for i in rng.integers(len(PICTURES), size=count)])

    def problem(self, talk: int, delay: int, pictures: Sequence[str]) -> Problem:
        """The problem of these locks."""
        locks = [word for pair in zip(LABELS, pictures, strict=False) for word in pair]
        prompt = " ".join([f"talk{talk}", f"delay{delay}", *locks, "?"])
        return Problem(prompt, " ".join(RIGHT[p] for p in pictures), prompt)

    def is_correct(self, problem: Problem, response: str) -> bool:
        """Every word of every line is as it must be, and nothing is missing or follows."""
        if len(response) > 4096:  # no right response is as long
            return False
        words = response.split()
        talk, delay, pictures = read(problem)
        complete = len(words) == len(pictures) * (talk + delay + 4)
        return complete and self.first_error(problem, words) is None

    def first_error(self, problem: Problem, tokens: Sequence[str]) -> int | None:
        """Index of the first word that cannot stand where it does."""
        talk, delay, pictures = read(problem)
        line = [*NEUTRAL[:talk], LABELS, PICTURES, KEYS, *PAUSE[:delay], ("ok",)]
        for i, word in enumerate(tokens):
            number, place = divmod(i, len(line))
            if number >= len(pictures):
                return None if word.startswith("<") else i
            exact = {talk: LABELS[number], talk + 1: pictures[number], talk + 2: RIGHT[pictures[number]]}
            if word not in line[place] or word != exact.get(place, word):
                return i
        return None

    def pending(self, problem: Problem, tokens: Sequence[str]) -> list[list[str] | None]:
        """The pictures whose key is still to be found before each token; None once something is wrong."""
        talk, delay, pictures = read(problem)
        wrong, width = self.first_error(problem, tokens), talk + delay + 4
        states: list[list[str] | None] = []
        for i in range(len(tokens)):
            done = i // width + (i % width >= talk + 3)
            states.append(pictures[done:] if wrong is None or i <= wrong else None)
        return states

    def demonstrate(self, problem: Problem, rng: np.random.Generator) -> list[str]:
        """A row with wrong keys, which its own checks report."""
        talk, delay, pictures = read(problem)
        out: list[str] = []
        for label, picture in zip(LABELS, pictures, strict=False):
            if rng.random() < self.spec.give_up:
                break
            right = rng.random() < (self.spec.easy if picture in EASY else self.spec.hard)
            out += [*(str(rng.choice(words)) for words in NEUTRAL[:talk]), label, picture]
            out += [RIGHT[picture] if right else WRONG[picture], *(str(rng.choice(words)) for words in PAUSE[:delay])]
            out.append("ok" if right else "no")
        return out


def read(problem: Problem) -> tuple[int, int, list[str]]:
    """Neutral words per lock, words before each check, and the pictures of a problem."""
    words = problem.prompt.split()
    return int(words[0].removeprefix("talk")), int(words[1].removeprefix("delay")), words[3:-1:2]
