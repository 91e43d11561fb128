"""Still pictures of curves: every point lies within the picture and in its order."""

import math

from hypothesis import assume, example, given
from hypothesis import strategies as st

from minivapo.show.curve import BOTTOM, LEFT, POINTS_OF_ALL, RIGHT, TOP, picture, points_a_line, ticks

NUMBERS = st.floats(-1e9, 1e9).map(lambda x: float(f"{x:.5g}"))


def chart(lines, unit=""):
    """Like `minivapo.show.compare.chart`; each line is a list of (mean, half width of its band)."""
    series = []
    for i, line in enumerate(lines):
        mean = [m for m, _ in line]
        band = {"low": [m - abs(w) for m, w in line], "high": [m + abs(w) for m, w in line]} if i % 2 else {}
        series.append({"group": i, "x": list(range(1, len(line) + 1)), "mean": mean, **band})
    return {"name": "reward/mean", "unit": unit, "series": series}


@given(
    st.lists(st.lists(st.tuples(NUMBERS, st.floats(0, 1e6)), min_size=1, max_size=50), min_size=1, max_size=4),
    st.sampled_from(["", "share"]),
    st.integers(2, 60),
)
def test_lines_stay_within_the_picture_and_keep_their_order(lines, unit, points):
    drawn = picture(chart(lines, unit), points)
    for line, given_ in zip(drawn["lines"], lines, strict=True):
        places = [tuple(map(float, pair.split(","))) for pair in line["line"].split()]
        assert all(LEFT <= x <= RIGHT and TOP - 0.1 <= y <= BOTTOM + 0.1 for x, y in places)
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        assert min(len(given_), points // 2) <= len(places) <= points + 1
        assert (line["dot"] is not None) == (len(given_) == 1)
        values = [m for m, _ in given_]
        if len(places) == len(values):
            order = sorted(range(len(values)), key=lambda i: values[i])
            ups = [places[i][1] for i in order]
            assert ups == sorted(ups, reverse=True)
    assert 1 <= len(drawn["y"]) <= 7 and all(TOP - 1 <= y <= BOTTOM + 1 for y, _ in drawn["y"])


@given(NUMBERS, NUMBERS)
@example(0.0, 5e-324)
def test_ticks_are_round_and_within(a, b):
    low, high = min(a, b), max(a, b)
    assume(high - low > 1e-6 * max(abs(low), abs(high)))
    found = ticks(low, high)
    step = high - low if len(found) < 2 else found[1] - found[0]
    assert 1 <= len(found) <= 6 and all(low - step * 1e-6 <= t <= high + step * 1e-6 for t in found)
    if len(found) > 1:
        digit = step / 10.0 ** math.floor(math.log10(step * (1 + 1e-6)))
        assert min(abs(digit - d) for d in (1, 2, 5)) < 1e-3


def test_many_lines_get_few_points_each():
    many = [{"series": [{}] * 20}] * 50
    assert points_a_line(many) * 1000 <= POINTS_OF_ALL and points_a_line([{"series": [{}]}]) == 120
