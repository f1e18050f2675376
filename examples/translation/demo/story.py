"""What the demo knows so far: filled by the daemon's log and by what the user is told over Realtime."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any

from examples.translation.card import LANGUAGES, Card

Row = dict[str, Any]


@dataclass
class Step:
    """One thing that is set up before the job; `seconds` is set when it is done."""

    name: str
    text: str
    began: float = field(default_factory=monotonic)
    seconds: float | None = None


@dataclass
class Story:
    """Everything that can be shown; `changed` is called after each change."""

    card: Card
    languages: tuple[str, ...]
    changed: Callable[[], None] = lambda: None
    steps: list[Step] = field(default_factory=list)
    job: Row = field(default_factory=dict)
    items: dict[str, Row] = field(default_factory=dict)
    account: Row = field(default_factory=dict)
    woken_by: str | None = None
    started_at: datetime | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the job is in a final state, and its items and the account are known to be too."""

    def begin(self, name: str, text: str) -> Step:
        """Start a step that takes a moment."""
        step = Step(name, text)
        self.steps.append(step)
        self.changed()
        return step

    def done(self, step: Step, text: str) -> None:
        """Finish a step and say what came of it."""
        step.text = text
        step.seconds = monotonic() - step.began
        self.changed()

    def row(self, table: str, row: Row) -> None:
        """Take in a row as Realtime tells it; an older one than is known changes nothing."""
        if table == "jobs" and row.get("updated_at", "") >= self.job.get("updated_at", ""):
            self.job = self.job | row
        elif table == "job_items":
            self.items[row["key"]] = self.items.get(row["key"], {}) | row
        elif table == "credit_accounts":
            self.account = row
        settled = self.account.get("held") == 0 and not any(self.pending(code) for code in self.languages)
        if self.job.get("finished_at") and settled:
            self.ended.set()
        self.changed()

    def pending(self, code: str) -> bool:
        """Say whether the item of a language is still to be done."""
        return code not in self.items or self.items[code]["status"] == "pending"

    @property
    def pickup_ms(self) -> float | None:
        """Milliseconds from the insert to the start of the handler; None while either is unknown."""
        if self.started_at is None or not self.job:
            return None
        return (self.started_at - datetime.fromisoformat(self.job["created_at"])).total_seconds() * 1000


def language(code: str) -> str:
    """Name a language; Klingon is asked for although the translator does not speak it."""
    return {**LANGUAGES, "tlh": "Klingon"}.get(code, code)
