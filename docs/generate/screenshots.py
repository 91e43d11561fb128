"""Makes pictures for the docs from the report of real runs, with headless Chromium.

    python docs/generate/screenshots.py RUN [RUN…]             # all runs together give the curves
    python docs/generate/screenshots.py RUN --explore 12       # this response of the first run in the explorer

Needs `pip install playwright` and a Chromium (`apt-get install chromium`, or MINIVAPO_CHROMIUM=PATH).
"""

import argparse
import io
import os
import re
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from minivapo.show.board import Board
from minivapo.show.live import view
from minivapo.show.report import make_report, read_run
from minivapo.show.tail import Tail, newest_samples

IMAGES = Path(__file__).parents[1] / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]


def open_report(browser, path: Path, theme: str) -> Page:
    """A page with the report, ready to be looked at."""
    page = browser.new_page(viewport={"width": 1180, "height": 900}, color_scheme=theme, device_scale_factor=1.5)
    page.set_default_timeout(300_000)
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-ready]")
    page.add_style_tag(
        content="header { position: static !important } .controls.sticky { position: static !important }"
    )
    return page


def settle(page: Page) -> None:
    """Waits until everything in sight is drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_timeout(500)


def shrink(path: Path) -> None:
    """256 colours are enough for a page of text: a third of the size."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1024} KB")


def picture(page: Page, first: str, last: str, path: Path, margin: int = 14) -> None:
    """A picture from the top of one element to the bottom of another."""
    top = page.locator(first).first.bounding_box()
    bottom = page.locator(last).first.bounding_box()
    assert top and bottom, "the elements are not on the page"
    scroll = page.evaluate("window.scrollY")
    y = top["y"] + scroll - margin
    clip = {"x": 0, "y": y, "width": 1180, "height": bottom["y"] + scroll + bottom["height"] + margin - y}
    page.screenshot(path=path, full_page=True, clip=clip)
    shrink(path)


def live_view(browser, run: Path, step: int, path: Path) -> None:
    """A picture of the terminal as it was when the run had taken so many steps."""
    lines = [line for line in Tail(run / "metrics.jsonl").read()[0] if line["step"] <= step]
    clock = [0.0]
    board = Board(read_run(run).config, now=lambda: clock[0])
    for line in lines:
        clock[0] += line.get("time/total", 3.0)
        board.add(line)
    board.sample = newest_samples(run)[0]
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(view(board, f"MiniVAPO {run.resolve().name}", 100))
    svg = re.sub(
        r"@font-face \{.*?\}", "", console.export_svg(title="minivapo train"), flags=re.S
    )  # they need a network
    page = browser.new_page(viewport={"width": 1000, "height": 700}, device_scale_factor=1.5)
    page.set_content(f"<body style='margin:0'>{svg.replace('Fira Code', 'DejaVu Sans Mono')}</body>")
    page.locator("svg").first.screenshot(path=path, omit_background=True)
    page.close()
    shrink(path)


def main() -> None:
    """Writes explorer-light.png, explorer-dark.png, curves.png and live.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--explore", type=int, help="number of the response in the explorer's list")
    parser.add_argument("--out", type=Path, default=IMAGES)
    args = parser.parse_args()
    chromium = os.environ.get("MINIVAPO_CHROMIUM") or shutil.which("chromium")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        report = make_report(args.runs, Path(folder) / "report.html")
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        for theme in ("light", "dark"):
            page = open_report(browser, report, theme)
            if args.explore is not None:
                page.select_option("#x-sample", str(args.explore))
            settle(page)
            picture(page, "#explorer-title", "#explorer", args.out / f"explorer-{theme}.png")
            if theme == "light":
                page.locator("#curves").scroll_into_view_if_needed()
                for figure in page.locator("#charts > .grid > figure").all():
                    figure.scroll_into_view_if_needed()
                settle(page)
                picture(page, "#curves-title", "#charts > .grid", args.out / "curves.png")
            page.close()
        last = read_run(args.runs[0]).metrics[-1]["step"]
        live_view(browser, args.runs[0], max(1, 2 * last // 3), args.out / "live.png")
        browser.close()


if __name__ == "__main__":
    main()
