"""The project's own texts, for the tests that do what they say."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# a block is taken whole: what looks like a heading in it is a comment
PART = re.compile(r"^```([^\n]*)\n(.*?)^```$|^#+ ([^\n]+)$", re.MULTILINE | re.DOTALL)


def blocks(path: str, language: str) -> dict[str, list[str]]:
    """Return the fenced blocks of a language, by the nearest heading above them.

    ``path`` begins at the project's root. Headings of any level count; those without a block are left out.
    """
    found: dict[str, list[str]] = {}
    title = ""
    for fence, block, heading in PART.findall((ROOT / path).read_text(encoding="utf-8")):
        if heading:
            title = heading
        elif fence == language:
            found.setdefault(title, []).append(block)
    return found
