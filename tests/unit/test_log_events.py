"""The names of events are a promise: those in the code are those in ops/LOGS.md, with their levels."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import processor

PACKAGE = Path(processor.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
OTHER_PROGRAMS = ("local", "cli/bench")
"""Parts of the package that daemons do not run."""


def in_the_code() -> dict[str, set[str]]:
    """Return each event that is logged, and by which methods."""
    found = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        if str(path.relative_to(PACKAGE)).startswith(OTHER_PROGRAMS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            for argument in node.args[:2]:
                if (
                    node.func.attr in LEVELS
                    and isinstance(argument, ast.Constant)
                    and isinstance(argument.value, str)
                    and re.fullmatch(r"[a-z]+\.[a-z_]+", argument.value)
                ):
                    found[argument.value].add(node.func.attr.replace("exception", "error"))
    return found


def in_the_book() -> dict[str, set[str]]:
    text = (PACKAGE.parent / "ops" / "LOGS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([a-z, ]+) \| .+ \|$", text, re.MULTILINE)
    return {event: set(levels.split(", ")) for event, levels in rows}


def test_every_event_is_explained_and_nothing_else() -> None:
    assert set(in_the_book()) == set(in_the_code())
    assert len(in_the_book()) > 80


def test_the_levels_are_those_of_the_code() -> None:
    written = in_the_book()
    for event, methods in in_the_code().items():
        if "log" not in methods and event != "job.log":  # these choose when it happens
            assert written[event] == methods, event
