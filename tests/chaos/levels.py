"""What a process holds: descriptors, threads, children, memory; and whether that is more than before."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

KEPT_CONNECTIONS = 6
"""Idle HTTP connections come and go within a client's pool."""
TASKS = 2
"""A probe, a timer: by name, at the moment of looking."""
THREADS = 2
"""The pool of an event loop grows with its use, to its bound."""
CHILDREN = 2
"""The processes for handlers, which come when they are needed and stay."""
MEMORY_SHARE, MEMORY_MB = 0.25, 15.0


@dataclass(frozen=True, slots=True)
class Level:
    """What one process held at a moment."""

    descriptors: Counter[str]
    """By what they are: `socket`, `pipe`, `file` …"""
    threads: int
    children: int
    memory_mb: float
    tasks: Counter[str] = field(default_factory=Counter)
    """By the first word of their names."""
    files: tuple[str, ...] = ()
    """What is open besides sockets and the like."""

    @classmethod
    def of(cls, pid: int, tasks: Iterable[str] = ()) -> Level:
        """Measure a running process, whose tasks have these names."""
        proc = Path("/proc") / str(pid)
        kinds: Counter[str] = Counter()
        files: list[str] = []
        for link in (proc / "fd").iterdir():
            try:
                what = str(link.readlink()).partition(":")[0]
            except FileNotFoundError:
                continue  # closed a moment ago
            if what.startswith("/"):
                files.append(what)
                what = "file"
            kinds[what] += 1
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        children = [
            child
            for task in (proc / "task").iterdir()
            for child in (task / "children").read_text().split()
            if (task / "children").exists()
        ]
        memory_mb = int(status["VmRSS"].split()[0]) / 1024
        words = Counter(re.split("[-:]", name)[0] for name in tasks)
        return cls(kinds, int(status["Threads"]), len(children), memory_mb, words, tuple(files))

    def above(self, before: Level) -> list[str]:
        """Say what there is more of than before, beyond what comes and goes."""
        lines = []
        for kind, count in self.descriptors.items():
            more = count - before.descriptors[kind]
            if more > (KEPT_CONNECTIONS if kind == "socket" else 0):
                which = f": {', '.join(self.files)}" if kind == "file" else ""
                lines.append(f"{count} descriptors of {kind}, {before.descriptors[kind]} before{which}")
        for name, count in self.tasks.items():
            if count > before.tasks[name] + TASKS:
                lines.append(f"{count} tasks named {name}, {before.tasks[name]} before")
        if self.threads > before.threads + THREADS:
            lines.append(f"{self.threads} threads, {before.threads} before")
        if self.children > max(before.children, CHILDREN):
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
            self.tasks | other.tasks,
        )
