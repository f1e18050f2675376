"""What each process of a measurement worked: CPU time, which changes little when others use the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PARTS = {
    "daemon": "daemon",
    "gateway": "gateway: REST and Realtime",
    "postgres_sessions": "PostgreSQL, sessions",
    "postgres_walsender": "PostgreSQL, decoding of the log",
    "postgres_rest": "PostgreSQL, all else",
}
"""What is told apart, and how people call it."""

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
    """Return the CPU seconds so far by part; where the system does not tell, nothing was used.

    Args:
        stack: process id of local mode, which PostgreSQL is a child of.
        daemon: process id of the daemon.

    """
    parts = dict.fromkeys(PARTS, 0.0)
    if not AVAILABLE:
        return parts
    found = {stat.pid: stat for stat in _all()}
    parts["daemon"] = found[daemon].own
    parts["gateway"] = found[stack].own
    for postmaster in (stat for stat in found.values() if stat.name == "postgres" and stat.parent == stack):
        parts["postgres_rest"] += postmaster.own + postmaster.ended
        for child in (stat for stat in found.values() if stat.parent == postmaster.pid):
            parts[_role(child.pid)] += child.own
    return parts


def per_job(before: Mapping[str, float], after: Mapping[str, float], jobs: int) -> dict[str, float] | None:
    """Return the microseconds of CPU that each part and all together used per job, if the system tells."""
    if not AVAILABLE:
        return None
    each = {part: (after[part] - before[part]) / jobs * 1e6 for part in PARTS}
    return {name: round(spent, 1) for name, spent in (each | {"total": sum(each.values())}).items()}


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
