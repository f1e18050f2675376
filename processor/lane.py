"""Queues whose jobs share slots, and when a claim for them makes sense."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from processor.answers import Claim


@dataclass(frozen=True, slots=True)
class Request:
    """A claim on its way; repeated as it is until an answer arrives, so that no job is orphaned."""

    id: UUID
    limit: int


class Lane:
    """Some queues of a worker, with slots of their own, which jobs of other lanes neither take nor lend."""

    def __init__(self, queues: Sequence[str], slots: int) -> None:
        self.queues = queues
        self.slots = slots
        self.sources: set[str] = set()
        """Who wants it to look for work."""
        self.request: Request | None = None
        self.due = math.inf
        """When the next claim makes sense, by the loop's clock."""
        self._empty_claims = 0

    def note(self, claim: Claim, sent: float, received: float) -> None:
        """Learn from an answer when to claim next."""
        self.due = local(claim.next_due_at, claim.now, sent, received)
        self._empty_claims = 0 if claim.jobs else self._empty_claims + 1
        if not claim.jobs and self.due <= received:
            # due, yet not to be had: others hold it locked for a moment, so insist gently
            self.due = received + min(0.05 * 2 ** min(self._empty_claims, 10), 5.0)


def local(due: datetime | None, now: datetime, sent: float, received: float) -> float:
    """Translate a moment of the server into the loop's clock: its ``now`` was between sent and received."""
    if due is None:
        return math.inf
    return (sent + received) / 2 + (due - now).total_seconds()
