"""What each process of a measurement worked: CPU time, which changes little when others use the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
AVAILABLE = (_PROC / "self" / "stat").exists()
"""Only Linux tells."""


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    name: str
    parent: int
    own: float
    """CPU seconds of the process, its threads included."""
    ended: float
    """CPU seconds of its children that have ended."""


def cpu_seconds(stack: int, daemon: int) -> dict[str, float]:
    """Return the CPU seconds so far, by part.

    Args:
        stack: process id of local mode, which PostgreSQL is a child of.
        daemon: process id of the daemon.

    """
    found = {stat.pid: stat for stat in _all()}
    parts = dict.fromkeys(
        ("daemon", "gateway", "postgres_sessions", "postgres_walsender", "postgres_rest"), 0.0
    )
    parts["daemon"] = found[daemon].own
    parts["gateway"] = found[stack].own
    for postmaster in (stat for stat in found.values() if stat.name == "postgres" and stat.parent == stack):
        parts["postgres_rest"] += postmaster.own + postmaster.ended
        for child in (stat for stat in found.values() if stat.parent == postmaster.pid):
            parts[_role(child.pid)] += child.own
    return parts


def _role(pid: int) -> str:
    """Tell a server process by its title, as in ``postgres: authenticator postgres [local] idle``."""
    try:
        title = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        title = ""
    if title.startswith("postgres: walsender"):
        return "postgres_walsender"
    sessions = ("postgres: authenticator", "postgres: postgres")
    return "postgres_sessions" if title.startswith(sessions) else "postgres_rest"


def _all() -> Iterator[_Stat]:
    tick = os.sysconf("SC_CLK_TCK")
    for directory in _PROC.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            text = (directory / "stat").read_text()
        except OSError:  # it has ended
            continue
        # the name stands in parentheses and may hold some itself; proc(5) counts fields from 1
        name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
        own, ended = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
        yield _Stat(int(directory.name), name, int(fields[1]), own / tick, ended / tick)
