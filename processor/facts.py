"""What a handler may know of its job, in whatever way it runs."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Generic, NoReturn, TypeVar
from uuid import UUID

from processor.job import Child, Job, Snooze, Wait

P = TypeVar("P")


class JobFacts(Generic[P]):
    """The part of a job's context that is the same for every sort of handler: it asks nobody."""

    def __init__(self, job: Job, payload: P, deadline: datetime | None) -> None:
        self.payload: P = payload
        self.deadline = deadline
        """When the handler will be stopped, if it has a timeout."""
        self._job = job
        self._children = {child.id: child for child in job.children}

    @property
    def id(self) -> UUID:
        """The job's id: stable over attempts, so good as an idempotency key for upstreams."""
        return self._job.id

    @property
    def kind(self) -> str:
        """The job's kind."""
        return self._job.kind

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self._job.queue

    @property
    def owner_id(self) -> UUID | None:
        """The user whose job it is; None for jobs of the application itself."""
        return self._job.owner_id

    @property
    def parent_id(self) -> UUID | None:
        """The job that this one is a child of."""
        return self._job.parent_id

    @property
    def children(self) -> tuple[Child, ...]:
        """The job's children in the order they were made, as they were when it was claimed; new ones too."""
        return tuple(self._children.values())

    @property
    def attempt(self) -> int:
        """How many times the job has been claimed, this time included."""
        return self._job.attempt

    @property
    def tags(self) -> tuple[str, ...]:
        """The job's tags."""
        return self._job.tags or ()

    @property
    def trace_context(self) -> Mapping[str, str] | None:
        """What the job was created within, for tracing: ``traceparent`` and ``tracestate``.

        Where ``PROCESSOR_OTEL`` has traces, the handler's own spans are within the attempt's by themselves.
        """
        return self._job.trace_context

    @property
    def tick(self) -> datetime | None:
        """The time of its schedule that the job is for, in UTC; None if no schedule made it.

        After an outage, and in another attempt, it is earlier than now.
        """
        for tag in self.tags:
            if tag.startswith("tick:"):
                with contextlib.suppress(ValueError):
                    return datetime.fromisoformat(tag.removeprefix("tick:"))
        return None

    def join(self) -> tuple[Child, ...]:
        """Return the children once all have ended; before that, raise :class:`Wait`.

        The job then gives its slot back, and the handler runs again, from the top, when the last child
        has ended. A child may have failed: look at its ``status``, or spawn with ``on_child_failure="fail"``.
        """
        if any(not child.ended for child in self.children):
            raise Wait
        return self.children

    def snooze(self, delay: float, reason: str = "snoozed by the handler") -> NoReturn:
        """End this attempt, and look again after ``delay`` seconds: ``raise Snooze(delay)``, as a call."""
        raise Snooze(delay, reason)

    def _adopt(self, children: Sequence[Child]) -> None:
        """Know of children that were just made."""
        for child in children:
            self._children.setdefault(child.id, child)
