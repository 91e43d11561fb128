"""Where the browser of the tests is."""

import os
import shutil


def chromium() -> str | None:
    """The program, of MINIVAPO_CHROMIUM or on the PATH; None if there is none."""
    return os.environ.get("MINIVAPO_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
