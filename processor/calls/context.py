"""What a plain function holds while it runs: the names of ``JobContext``, blocking."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Unpack

from processor.calls.line import Line
from processor.facts import JobFacts, P
from processor.job import Child, ChildOptions, Item, Job, NewChild, OnChildFailure
from processor.log import JobLog

if TYPE_CHECKING:
    from supabase import Client

A = ParamSpec("A")


@dataclass(frozen=True, slots=True)
class Brief:
    """What a handler is called with."""

    job: Job
    payload: Any
    timeout: float | None
    """In seconds, from the moment the handler is called."""
    item_concurrency: int

    def deadline(self) -> datetime | None:
        """Return when a handler that is called now will be stopped."""
        return None if self.timeout is None else datetime.now(UTC) + timedelta(seconds=self.timeout)


class SyncJobItem(Generic[P]):
    """One unfinished item, for a plain function."""

    def __init__(self, job: "SyncJobContext[P]", item: Item, line: Line) -> None:
        self.job = job
        self.key = item.key
        self.position = item.position
        self.payload = item.payload
        self.attempts = item.attempts
        self._line = line

    def progress(self, done: float, total: float | None = None) -> None:
        """Report ``done`` of ``total``, or a fraction from 0 to 1."""
        self._line.call("item_progress", self.key, done, total)

    def __repr__(self) -> str:
        return f"SyncJobItem({self.key!r}, attempts={self.attempts})"


class SyncJobContext(JobFacts[P]):
    """The job as a plain ``def`` handler sees it; the names are those of ``JobContext``, and they block.

    Every call raises :class:`JobStopped` once the job is to stop (cancelled, timed out, taken away, or the
    daemon is ending); after that a handler that cleans up may still write log lines. Code that calls
    nothing here for long looks at ``cancelled`` instead.
    """

    def __init__(self, brief: Brief, line: Line, *, logger: Any, client: "Callable[[], Client]") -> None:
        super().__init__(brief.job, brief.payload, brief.deadline())
        self.cancelled = threading.Event()
        """Set when somebody wants the handler to stop."""
        self.log = JobLog(logger, self._keep)
        self.items: tuple[SyncJobItem[P], ...] = tuple(
            SyncJobItem(self, item, line) for item in brief.job.items
        )
        """The items that are not done yet."""
        self._line = line
        self._client = client
        self._item_concurrency = brief.item_concurrency
        items = {item.key: item for item in self.items}
        line.item = items.__getitem__

    @property
    def supabase(self) -> "Client":
        """A ready client, of the blocking kind, with the worker's rights: RLS does not limit it."""
        self._line.check()
        return self._client()

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Report ``done`` of ``total``, or a fraction from 0 to 1."""
        self._line.call("progress", done, total, message)

    def each(
        self, function: Callable[[SyncJobItem[P]], Any], *, concurrency: int | None = None
    ) -> dict[str, Any]:
        """Run ``function(item)`` for every unfinished item, as :meth:`JobContext.each` does.

        With a concurrency of more than 1 every item has a thread of its own; with 1 they run in the
        handler's, one after another.
        """
        at_once = concurrency or self._item_concurrency
        done: dict[str, Any] = self._line.call(
            "each", self._line.callback(function), options={"concurrency": at_once}, parallel=at_once > 1
        )
        return done

    def checkpoint(self, name: str, function: Callable[A, Any], /, *args: A.args, **kwargs: A.kwargs) -> Any:
        """Take a step once, as :meth:`JobContext.checkpoint` does."""
        return self._line.call("checkpoint", name, self._line.callback(function), *args, options=kwargs)

    def spawn(
        self,
        kind: str,
        payload: Any = None,
        *,
        on_child_failure: OnChildFailure | None = None,
        **options: Unpack[ChildOptions],
    ) -> Child:
        """Make a job that is part of this one, and has its owner; see :meth:`spawn_all`."""
        child: NewChild = {"kind": kind, "payload": {} if payload is None else payload, **options}
        return self.spawn_all([child], on_child_failure=on_child_failure)[0]

    def spawn_all(
        self, jobs: Iterable[NewChild], *, on_child_failure: OnChildFailure | None = None
    ) -> tuple[Child, ...]:
        """Make up to 10,000 jobs that are parts of this one, as :meth:`JobContext.spawn_all` does."""
        made: tuple[Child, ...] = self._line.call(
            "spawn_all", list(jobs), options={"on_child_failure": on_child_failure}
        )
        self._adopt(made)
        return made

    def _keep(self, level: str, message: str, fields: dict[str, Any]) -> None:
        self._line.call("log", level, message, fields, cleaning_up=True)
