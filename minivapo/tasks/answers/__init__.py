r"""Final answers: find the one a response states, and decide whether it equals the gold answer.

    extract     which answer does the response state? Linear scans.
    normalise   one spelling for each expression.
    quantity    numbers with units, exactly.
    groups      tuples, sets, intervals, matrices and lists.
    compare     `equal`, from all of these. What needs algebra comes back as None: not decided.
    algebra     the same with math-verify (LaTeX → sympy), in the processes of `server` alone.

Nothing here imports the rest of MiniVAPO, so that `server` can run this folder as a package of its own, without torch.
Text is never evaluated as Python: numbers go through a regular expression, everything else through math-verify's
LaTeX grammar (its plain-expression mode, which calls sympy's `parse_expr`, is not used).

What counts as equal, where graders differ (each row has cases in `tests/support/grade_cases.py`):

- **Which answer.** The last of: a closed `\boxed{…}`, `Answer: …`, `<answer>…</answer>`, `#### 18`. Without
  any of them the last "the answer is …"; without that a response that is one short line. A last `\boxed{`
  that never closes states no answer.
- **Decimals** are exact: 0.33 is not 1/3. An approximation counts from 6 decimal places and 4 significant
  digits on (0.333333 = 1/3). A comma is a thousands separator or a list comma, never a decimal point.
- **Constants** written otherwise are decided exactly: 2^100 - 1 is not 2^100. Digits only tell them apart.
- **Percent.** 50% equals 0.5; the sign may also be left out on one side when the bare number is above 1
  (50% = 50, but 0.5% is not 0.5).
- **Units** may be left out on one side. Stated on both they must agree; lengths, masses, times and amounts
  of money convert (50 mm = 5 cm, but 5 cm is not 5 m). Thousand, million, … are factors, never units.
- **Order.** Tuples are ordered; sets and plain lists are not. Brackets matter: (1, 2] is not [1, 2].
- **Assignments.** x = 5 and m + n = 5 state 5; y = 5 is not x = 5; neither 4 = 5 nor 2x + 1 = 5 states 5.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_RESPONSE = 500_000
"""Characters of a response that are read, counted from its end."""
MAX_ANSWER = 1_000
"""Characters of a final answer; a longer one is right only when it is the gold answer verbatim."""
MAX_NESTING = 24
"""Depth of brackets in an answer; a deeper one is unreadable, so wrong (recursive parsers die of it)."""
MAX_ITEMS = 32
"""Elements of a list, tuple or set that are compared one by one."""

PATIENCE = 10
"""How many times its limit of processor time an answer may take by the clock, on a busy machine."""

Symbolic = Callable[[str, str], bool]
"""Compares (predicted, gold) by algebra; raises when it cannot judge."""


class Undecided(Exception):
    """Whether two answers are equal could not be found out within the bounds."""


class Unreadable(Exception):
    """The gold answer cannot be read, so no response can be judged against it."""
