"""docs/explore.html, driven in a real browser: its numbers are those of minivapo.vapo, and everybody can use it."""

import importlib
import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from minivapo.study.mechanisms import estimated_mixed_share
from minivapo.vapo import gae, length_adaptive_lambda, loss_weights, policy_loss, positive_example_loss

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/explore.html"
DATA = json.loads((ROOT / "docs/results/explore.json").read_text())
EXACT = 1e-9
"""Both sides compute in double precision."""


@pytest.fixture
def explore(monkeypatch):
    """The generator."""
    monkeypatch.syspath_prepend(ROOT / "docs/generate")
    return importlib.import_module("explore")


def site():
    """docs/conf.py as a module."""
    specification = importlib.util.spec_from_file_location("conf", ROOT / "docs/conf.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------------
# What is written into it
# ---------------------------------------------------------------------------------------------------------


def test_three_lines_of_each_technique_are_cut_from_the_source(explore, monkeypatch, tmp_path):
    source = explore.VAPO.read_text()
    for section in explore.CODE:
        lines = [line for _, lines in explore.code(section) for line in lines]
        assert len(lines) == 3 and all(f" {line}\n" in source for line in lines)
    changed = tmp_path / "vapo.py"
    changed.write_text(source.replace("delta = rewards[:, t]", "error = rewards[:, t]"))
    monkeypatch.setattr(explore, "VAPO", changed)
    with pytest.raises(ValueError, match="stands in 0 lines of gae"):
        explore.code("value-model")


def test_it_is_small_and_its_links_lead_somewhere():
    page = PAGE.read_text()
    assert len(page.encode()) < 300_000 and (ROOT / "docs/results/explore.json").stat().st_size < 150_000
    titles = re.findall(r"^## (.+)$", (ROOT / "docs/map.md").read_text(), re.M)
    # "Technique, at …" is a second sweep of a technique, which stands below its first.
    anchors = {title.lower().replace(" ", "-") for title in titles if "," not in title}
    assert set(re.findall(r'href="map\.md#([\w-]+)"', page)) == anchors
    local = set(re.findall(r'href="([^"#:]+)', page)) - {"data"}
    assert local and all((ROOT / "docs" / path).exists() for path in local)
    built = site().site_links(page)
    assert ".md" not in "".join(re.findall(r'href="[^"]*"', built))
    source = (ROOT / "minivapo/vapo.py").read_text()
    for name in re.findall(r'href="_modules/minivapo/vapo\.html#([^"]+)"', built):
        assert re.search(rf"^(class|def) {name}\b", source, re.M), name  # the anchors of Sphinx's viewcode
    for front in ("README.md", "docs/index.md"):
        assert "explore.html" in (ROOT / front).read_text()


# ---------------------------------------------------------------------------------------------------------
# In a browser: the numbers
# ---------------------------------------------------------------------------------------------------------


def move(page, name, place):
    """Puts a slider to a place, as a hand does."""
    page.eval_on_selector(f"#{name}", "(n, v) => { n.value = v; n.dispatchEvent(new Event('input')); }", place)


def number(page, name):
    """The number of a slider, in full."""
    return float(page.get_attribute(f"#{name}-out", "data-value"))


def told(page, name, key):
    """A number that a figure says, in full."""
    return float(page.get_attribute(f"#{name}-says", f"data-{key}"))


def column(page, name, title):
    """A column of the table behind a figure, in full."""
    return page.eval_on_selector_all(
        f'#{name}-table td[data-column="{title}"]', "nodes => nodes.map(n => Number(n.dataset.value))"
    )


def row(values):
    return torch.tensor([values], dtype=torch.float64)


def advantages(response, values, lam):
    """Those of minivapo.vapo."""
    rewards = [0.0] * (len(values) - 1) + [float(response["correct"])]
    return gae(row(rewards), row(values), torch.ones(1, len(values)), 1.0, lam)[0]


def test_lambda_under_the_thumb_is_gae(show):
    page = show(PAGE)
    for i, response in enumerate(DATA["responses"]):
        page.select_option("#gae-response", str(i))
        truth = advantages(response, response["truth"], 0.0)
        for lam in (0.0, 0.37, 0.95, 1.0):
            move(page, "gae-lam", lam)
            expected = advantages(response, response["values"], lam)
            assert column(page, "gae", "Â by GAE") == pytest.approx(expected.tolist(), abs=EXACT)
            colours = page.eval_on_selector_all(
                "#gae-tokens .token", "nodes => nodes.map(n => Number(n.dataset.value))"
            )
            assert colours == pytest.approx(expected.tolist(), abs=EXACT)
            error = (expected - truth).square().mean().sqrt()
            assert told(page, "gae", "error") == pytest.approx(float(error), abs=EXACT)
        assert column(page, "gae", "A true") == pytest.approx(truth.tolist(), abs=EXACT)


def test_the_keyboard_moves_lambda(show):
    page = show(PAGE)
    before = page.locator("#gae-says").inner_text(), page.get_attribute("#gae-advantages .line", "points")
    page.focus("#gae-lam")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert number(page, "gae-lam") == pytest.approx(0.9)
    expected = advantages(DATA["responses"][0], DATA["responses"][0]["values"], 0.9)
    assert column(page, "gae", "Â by GAE") == pytest.approx(expected.tolist(), abs=EXACT)
    after = page.locator("#gae-says").inner_text(), page.get_attribute("#gae-advantages .line", "points")
    assert before[0] != after[0] and before[1] != after[1]
    page.keyboard.press("Home")
    assert number(page, "gae-lam") == 0 and page.get_attribute("#gae-lam", "aria-valuetext") == "0"


def test_the_film_shows_what_was_measured(show):
    page = show(PAGE)
    truth = torch.tensor(DATA["responses"][0]["truth"], dtype=torch.float64)
    for kind, film in DATA["film"].items():
        page.check(f'input[name="film-start"][value="{kind}"]')
        for place, (rollouts, frame) in enumerate(film.items()):
            move(page, "film-frame", place)
            assert number(page, "film-frame") == int(rollouts)
            assert column(page, "film", "V critic") == frame["values"]
            error = (torch.tensor(frame["values"], dtype=torch.float64) - truth).square().mean().sqrt()
            assert told(page, "film", "error") == pytest.approx(float(error), abs=EXACT)
            explained = f"{100 * frame['explained_variance']:.0f} %".replace("-", "−")
            assert explained in page.locator("#film-says").inner_text()


def test_targets_of_the_critic_are_advantages_plus_values(show):
    page = show(PAGE)
    response = DATA["responses"][0]
    for rollouts, lam in (("0", 0.8), ("16", 0.95), ("16", 1.0)):
        page.check(f'input[name="targets-critic"][value="{rollouts}"]')
        move(page, "targets-lam", lam)
        values = DATA["film"]["reward-model"][rollouts]["values"]
        expected = advantages(response, values, lam) + torch.tensor(values, dtype=torch.float64)
        assert column(page, "targets", "target") == pytest.approx(expected.tolist(), abs=EXACT)
        rewards = row([0.0] * (len(values) - 1) + [1.0])  # what reaches the first token of a reward of 1
        heard = gae(rewards, torch.zeros_like(rewards), torch.ones(1, len(values)), 1.0, lam)[0, 0]
        assert told(page, "targets", "kept") == pytest.approx(1 - float(heard), abs=EXACT)


def test_reach_follows_the_length(show, float64):
    page = show(PAGE)
    for length, alpha in ((1.0, -1.3), (1.6, -0.3), (4.0, -1.3)):  # powers of ten
        move(page, "reach-length", length)
        move(page, "reach-alpha", alpha)
        tokens = int(number(page, "reach-length"))
        lam = length_adaptive_lambda(torch.tensor([tokens]), number(page, "reach-alpha"))
        assert told(page, "reach", "lam") == pytest.approx(float(lam), abs=EXACT)
        reward = torch.zeros(1, tokens)
        reward[0, -1] = 1
        for name, l in (("λ by length", lam), ("λ fixed", 0.95)):
            heard = gae(reward, torch.zeros(1, tokens), torch.ones(1, tokens), 1.0, l)[0]
            assert column(page, "reach", name)[0] == pytest.approx(float(heard[0]), abs=EXACT)
            assert column(page, "reach", name)[-1] == 1


def test_weights_are_those_of_both_losses(show, float64):
    page = show(PAGE)
    real = sorted(length for length, _ in DATA["mini_batch"])
    for ratio, lengths in ((1, [20, 20]), (4, [20, 80]), (16, [20, 320]), (None, real)):
        if ratio:
            move(page, "weights-ratio", ratio)
        else:
            page.check('input[name="weights-batch"][value="real"]')
        assert column(page, "weights", "length in tokens") == lengths
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        for level, count in (("token-level", sum(lengths)), ("sample-level", len(lengths))):
            weights = loss_weights(mask, torch.tensor(lengths), level == "token-level")[:, 0] / count * sum(lengths)
            assert column(page, "weights", level) == pytest.approx(weights.tolist(), abs=EXACT)


def pushes(ratios, advantage, low, high):
    """Objective of tokens of one advantage at these ratios, and its slope in log π, both of policy_loss."""
    logprobs = torch.tensor([ratios]).log().requires_grad_()
    old, ones = torch.zeros_like(logprobs), torch.ones_like(logprobs)
    policy_loss(logprobs, old, advantage * ones, ones, 1, low, high).backward()
    one = torch.ones(1, 1)
    tokens = logprobs.detach().split(1, 1)
    objective = [-float(policy_loss(token, 0 * one, advantage * one, one, 1, low, high)) for token in tokens]
    return objective, (-logprobs.grad[0]).tolist()


def test_the_clip_is_that_of_the_policy_loss(show, float64):
    page = show(PAGE)
    for low, high in ((0.2, 0.28), (0.35, 0.51)):
        move(page, "clip-low", low)
        move(page, "clip-high", high)
        ratios = column(page, "clip", "ratio ρ")
        for sign, name in ((1, "Â = 1"), (-1, "Â = −1")):
            objective, push = pushes(ratios, sign, low, high)
            assert column(page, "clip", f"objective, {name}") == pytest.approx(objective, abs=EXACT)
            # at the corners themselves the slope is either side's
            inner = [i for i, r in enumerate(ratios) if min(abs(r - 1 + low), abs(r - 1 - high)) > 1e-6]
            found = column(page, "clip", f"push, {name}")
            assert [found[i] for i in inner] == pytest.approx([push[i] for i in inner], abs=EXACT)
        p, climbs = number(page, "clip-p"), 0
        while p < 0.5:  # each rollout takes the choice up to the clip
            p, climbs = p * (1 + high), climbs + 1
        assert climbs - 1 < told(page, "clip", "needed") <= climbs


def test_the_push_on_a_right_response_is_that_of_both_losses(show, float64):
    page = show(PAGE)
    for mu, place, right, wrong in ((0.1, -1.0, 1, 9), (0.3, -0.301, 5, 5), (0.02, -2.0, 1, 99)):
        move(page, "positive-mu", mu)
        move(page, "positive-p", place)
        p = number(page, "positive-p")
        assert p == pytest.approx(right / (right + wrong))
        logprobs = torch.full((right + wrong, 7), -1.0, requires_grad=True)
        correct = (torch.arange(right + wrong) < right)[:, None].expand_as(logprobs)
        advantage = correct.double() - p
        ppo = policy_loss(logprobs, logprobs.detach(), advantage, torch.ones_like(logprobs), logprobs.numel())
        (policy,) = torch.autograd.grad(ppo, logprobs)
        (positive,) = torch.autograd.grad(mu * positive_example_loss(logprobs, correct, 7 * right), logprobs)
        for key, gradient in (("policy", policy), ("positive", positive)):
            assert told(page, "positive", key) == pytest.approx(-float(gradient[0, 0]) * logprobs.numel(), abs=EXACT)


def test_groups_are_counted_from_the_verdicts(show, float64):
    page = show(PAGE)
    right = torch.tensor([int(text, 16).bit_count() for text in DATA["groups"]])
    sizes = [int(n) for n in column(page, "groups", "responses a prompt")]
    expected = [float(estimated_mixed_share(right, 64, n).mean()) for n in sizes]
    assert column(page, "groups", "share with both verdicts") == pytest.approx(expected, abs=EXACT)
    for place, n in enumerate(sizes):
        move(page, "groups-n", place)
        heads = [int(text, 16) & (2**n - 1) for text in DATA["groups"][: 256 // n]]
        assert told(page, "groups", "mixed") == sum(0 < head < 2**n - 1 for head in heads)
        assert page.locator("#groups-plot .hit").count() == sum(head.bit_count() for head in heads)
        assert page.locator("#groups-plot .hit, #groups-plot .miss").count() == 256


# ---------------------------------------------------------------------------------------------------------
# In a browser: for everybody
# ---------------------------------------------------------------------------------------------------------

CONTRAST = """selector => [...document.querySelectorAll(selector)].filter(n => n.textContent.trim()).map(n => {
    const rgba = c => c.match(/[\\d.]+/g).map(Number), ink = getComputedStyle(n);
    let ground = n;
    while (ground && (rgba(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
    const shine = c => luminance(rgba(c).slice(0, 3));
    const l = [shine(n instanceof SVGElement ? ink.fill : ink.color), shine(getComputedStyle(ground).backgroundColor)];
    return [n.outerHTML.slice(0, 90), (Math.max(...l) + 0.05) / (Math.min(...l) + 0.05)]; })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(show, scheme):
    page = show(PAGE, color_scheme=scheme)
    for lam in (0, 1):
        move(page, "gae-lam", lam)
        found = page.evaluate(
            CONTRAST, "main p, main a, main b, main code, .token, main text, .dial, .hint, figure summary"
        )
        assert len(found) > 200
        assert [node for node, contrast in found if contrast < 4.5] == []
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    colour = page.evaluate("document.querySelector('#gae-tokens .token').style.background")
    page.select_option("#theme", "dark" if scheme == "light" else "light")
    assert page.evaluate(ground) != before
    assert page.evaluate("document.querySelector('#gae-tokens .token').style.background") != colour


def test_everything_has_a_name_and_a_place(show):
    """What axe would look for: names of controls and pictures, unique ids, headings in order, one main, a language."""
    page = show(PAGE)
    unnamed = """nodes => nodes.filter(n => !n.labels?.length && !n.getAttribute('aria-label')
        && !n.textContent.trim()).map(n => n.outerHTML)"""
    assert page.eval_on_selector_all("input, select, button, a, summary, [tabindex]", unnamed) == []
    assert page.eval_on_selector_all("svg:not([role=img][aria-label])", "nodes => nodes.length") == 0
    ids = page.eval_on_selector_all("[id]", "nodes => nodes.map(n => n.id)")
    assert len(ids) == len(set(ids))
    referred = page.eval_on_selector_all(
        "[for], [aria-labelledby]",
        "nodes => nodes.map(n => n.getAttribute('for') || n.getAttribute('aria-labelledby'))",
    )
    assert set(referred) <= set(ids)
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "nodes => nodes.map(n => Number(n.tagName[1]))")
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.locator("main").count() == 1 and page.get_attribute("html", "lang") == "en"
    assert page.locator("section > figure.live .try").count() == page.locator(".sweep").count() == 8
    assert page.locator('[aria-live="polite"]').count() == 8
    assert all(len(text) > 40 for text in page.locator('[aria-live="polite"]').all_inner_texts())
    assert page.locator("math").count() >= 8


def test_narrow_screens_do_not_scroll_sideways(show):
    page = show(PAGE, viewport={"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    small = "nodes => nodes.filter(n => n.getBoundingClientRect().height < 9).map(n => n.textContent)"
    assert page.eval_on_selector_all("main svg text", small) == []  # text keeps its size where a chart is narrow


def test_print_shows_every_figure(show):
    page = show(PAGE)
    page.emulate_media(media="print")
    drawn = """nodes => nodes.map(n => [n.id, Math.max(0, ...[...n.querySelectorAll('polyline, rect, path')]
        .filter(m => m.checkVisibility()).map(m => m.getBoundingClientRect().width))])"""
    found = page.eval_on_selector_all("main svg", drawn)
    assert len(found) == 8 + 12  # the sweeps', and the figures'
    assert [name for name, width in found if width < 20] == []
    assert page.locator("input:visible").count() == 0
