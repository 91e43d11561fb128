"""The code on the pages of the docs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(page, language):
    """The code blocks of a page in one language."""
    text = (ROOT / page).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def patched(source, page):
    """The source after the edits of a page's diff blocks, each of which fits in one place."""
    for block in blocks(page, "diff"):
        lines = block.splitlines()
        before = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
        after = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
        assert source.count(before) == 1, block
        source = source.replace(before, after)
    return source
