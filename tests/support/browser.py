"""The browser of the tests: where it is, and how a page is opened and watched."""

import os
import shutil

PATIENCE = 240_000
"""Milliseconds: a busy machine is slow, and slow is not wrong."""
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


def chromium() -> str | None:
    """The program, of MINIVAPO_CHROMIUM or on the PATH; None if there is none."""
    return os.environ.get("MINIVAPO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def open_page(browser, path, **options):
    """A page from disk, once it is ready; its errors and requests are kept in `problems` and `requests`."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.problems, page.requests = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-ready]")
    return page
