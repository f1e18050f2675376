"""What a process holds: descriptors, threads, children, memory; and whether that is more than before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

KEPT_CONNECTIONS = 6
"""Idle HTTP connections come and go within a client's pool."""
THREADS = 2
"""The pool of an event loop grows with its use, to its bound."""
MEMORY_SHARE, MEMORY_MB = 0.25, 15.0


@dataclass(frozen=True, slots=True)
class Level:
    """What one process held at a moment."""

    descriptors: Counter[str]
    """By what they are: `socket`, `pipe`, `file` …"""
    threads: int
    children: int
    memory_mb: float

    @classmethod
    def of(cls, pid: int) -> Level:
        """Measure a running process."""
        proc = Path("/proc") / str(pid)
        kinds: Counter[str] = Counter()
        for link in (proc / "fd").iterdir():
            try:
                what = str(link.readlink()).partition(":")[0]
            except FileNotFoundError:
                continue  # closed a moment ago
            kinds["file" if what.startswith("/") else what] += 1
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        children = [
            child
            for task in (proc / "task").iterdir()
            for child in (task / "children").read_text().split()
            if (task / "children").exists()
        ]
        return cls(kinds, int(status["Threads"]), len(children), int(status["VmRSS"].split()[0]) / 1024)

    def above(self, before: Level) -> list[str]:
        """Say what there is more of than before, beyond what comes and goes."""
        lines = []
        for kind, count in self.descriptors.items():
            more = count - before.descriptors[kind]
            if more > (KEPT_CONNECTIONS if kind == "socket" else 0):
                lines.append(f"{count} descriptors of {kind}, {before.descriptors[kind]} before")
        if self.threads > before.threads + THREADS:
            lines.append(f"{self.threads} threads, {before.threads} before")
        if self.children > before.children:
            lines.append(f"{self.children} child processes, {before.children} before")
        if self.memory_mb > before.memory_mb * (1 + MEMORY_SHARE) + MEMORY_MB:
            lines.append(f"{self.memory_mb:.0f} MB of memory, {before.memory_mb:.0f} before")
        return lines

    def most(self, other: Level) -> Level:
        """Return the greater of each."""
        return Level(
            self.descriptors | other.descriptors,
            max(self.threads, other.threads),
            max(self.children, other.children),
            max(self.memory_mb, other.memory_mb),
        )
