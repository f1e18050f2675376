"""What a handler holds while it runs: the job, its items, and the lines back to the daemon."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, Unpack
from uuid import UUID

from processor.checkpoints import Checkpoints
from processor.errors import ErrorCode, JobError
from processor.facts import JobFacts, P
from processor.job import (
    Cancel,
    Child,
    ChildOptions,
    Failure,
    Item,
    ItemOutcome,
    Job,
    NewChild,
    OnChildFailure,
    Snooze,
    Step,
    Wait,
)
from processor.jsonb import to_jsonb
from processor.log import JobLog

if TYPE_CHECKING:
    from supabase import AsyncClient

A = ParamSpec("A")


class Desk(Protocol):
    """What a context needs from whoever runs the job.

    Everything but ``stopping`` and ``classify`` raises ``CancelledError`` when the job is not this
    process's any more.
    """

    @property
    def supabase(self) -> "AsyncClient":
        """A client for the application's own tables, storage and functions."""

    @property
    def stopping(self) -> bool:
        """Whether somebody wants the handler to stop."""

    def admit(self) -> None:
        """Let the handler go on, if the job is still this process's."""

    def progress(self, job: Job, fraction: float, message: str | None) -> None:
        """Note the job's progress; the latest of a moment is written."""

    def item_progress(self, job: Job, key: str, fraction: float) -> None:
        """Note an item's progress."""

    def log(self, job: Job, level: str, message: str, fields: dict[str, Any]) -> None:
        """Keep a line for the job's owner."""

    def classify(self, error: BaseException) -> Failure:
        """Say what an item's exception means."""

    async def finish_item(self, job: Job, outcome: ItemOutcome) -> Failure | None:
        """Make an item's outcome durable; returns why it was refused, if it was."""

    async def save_checkpoint(self, job: Job, step: Step) -> None:
        """Make the result of a step durable."""

    async def read_checkpoint(self, job: Job, name: str) -> Any:
        """Get the result of a step that did not come with the job."""

    async def spawn(
        self, job: Job, children: Sequence[NewChild], on_child_failure: OnChildFailure | None
    ) -> Sequence[UUID]:
        """Make children, or find those made before; returns their ids in the order given."""


class JobItem(Generic[P]):
    """One unfinished item: a language, a file, a chunk."""

    def __init__(self, job: "JobContext[P]", item: Item, desk: Desk) -> None:
        self.job = job
        self.key = item.key
        self.position = item.position
        self.payload = item.payload
        self.attempts = item.attempts
        self._desk = desk

    def progress(self, done: float, total: float | None = None) -> None:
        """Report ``done`` of ``total``, or a fraction from 0 to 1."""
        self._desk.item_progress(self.job._job, self.key, fraction(done, total))  # noqa: SLF001 - one room

    def __repr__(self) -> str:
        return f"JobItem({self.key!r}, attempts={self.attempts})"


class JobContext(JobFacts[P]):
    """The job as its handler sees it.

    Annotate the handler's parameter as ``JobContext[Card]`` and ``payload`` is a validated ``Card``.
    """

    def __init__(
        self,
        job: Job,
        payload: P,
        desk: Desk,
        *,
        logger: Any,
        item_concurrency: int = 3,
        deadline: datetime | None = None,
    ) -> None:
        super().__init__(job, payload, deadline)
        self.cancelled = asyncio.Event()
        """Set when somebody wants the handler to stop; it gets a CancelledError at the same moment."""
        self.log = JobLog(logger, lambda level, message, fields: desk.log(job, level, message, fields))
        self.items: tuple[JobItem[P], ...] = tuple(JobItem(self, item, desk) for item in job.items)
        """The items that are not done yet."""
        self._desk = desk
        self._item_concurrency = item_concurrency
        self._done = {item.position: (item.key, item.result) for item in job.done}
        self._going = False
        self._checkpoints = Checkpoints(
            job.checkpoints,
            save=lambda step: desk.save_checkpoint(job, step),
            read=lambda name: desk.read_checkpoint(job, name),
        )
        self._unnamed = 0

    @property
    def supabase(self) -> "AsyncClient":
        """A ready client with the worker's rights, shared by all jobs: RLS does not limit it."""
        return self._desk.supabase

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Report ``done`` of ``total``, or a fraction from 0 to 1; call it as often as you like."""
        self._desk.progress(self._job, fraction(done, total), message)

    async def each(
        self, function: Callable[[JobItem[P]], Awaitable[Any]], *, concurrency: int | None = None
    ) -> dict[str, Any]:
        """Run ``function(item)`` for every unfinished item, ``concurrency`` at a time.

        Each finished item is a checkpoint: its result is stored and its credits are captured, and no
        later attempt runs it again. A failing item stops no other; whether it is tried again is decided
        when the job is settled. Returns key → result of every item completed so far, in the items'
        order, those of earlier attempts included (past 4 MiB in all these come as None: the rows of
        job_items have them).
        :class:`Snooze`, :class:`Wait` and :class:`Cancel` end the whole job's attempt. Called again, it goes
        through what is still not done. Raises ``RuntimeError`` when another call is under way.
        """
        if self._going:
            raise RuntimeError("each() is already going through the items: await it before the next call.")
        self._desk.admit()
        limit = asyncio.Semaphore(concurrency or self._item_concurrency)
        done = self._done

        async def run(item: JobItem[P]) -> None:
            async with limit:
                self._desk.admit()
                outcome = await self._attempt(function, item)
                if await self._desk.finish_item(self._job, outcome) is None and outcome.failure is None:
                    done[item.position] = (item.key, outcome.result)

        self._going = True
        try:
            async with asyncio.TaskGroup() as group:
                for item in self.items:
                    if item.position in done:
                        continue
                    group.create_task(run(item), name=f"item:{self._job.id}:{item.key}")
        except* (Snooze, Wait, Cancel) as decisions:
            decision = decisions.exceptions[0]
        else:
            self._desk.admit()
            if self._desk.stopping:  # a group passes over the cancellation of its tasks in silence
                raise asyncio.CancelledError
            return dict(done[position] for position in sorted(done))
        finally:
            self._going = False
        raise decision

    async def checkpoint(
        self, name: str, function: Callable[A, Any], /, *args: A.args, **kwargs: A.kwargs
    ) -> Any:
        """Take a step once: run ``function(*args)``, async or not, unless an earlier attempt completed it.

        What it returns is stored before this returns it, as JSON (at most 1 MiB), and every later attempt
        gets it without running the step: after a crash, a retry, a snooze, and in the job that ``retry_job``
        makes of this one. A step that raises stores nothing. What is returned is what JSON gives back, the
        first time too: a date is a text, a tuple a list.

        ``name``, of at most 200 characters, is the step's own within the job: put what tells it from the
        others into it, such as the item's key. Asking again for the same step returns the same; while it
        runs, waits for it.

        Raises ``JobError`` which, if not caught, fails the job for good: ``CHECKPOINT_REFUSED`` when the
        name stands for another step, ``INVALID_RESULT`` when the result cannot be stored.
        """
        self._desk.admit()
        return await self._checkpoints.run(name, (function, args, kwargs))

    async def spawn(
        self,
        kind: str,
        payload: Any = None,
        *,
        on_child_failure: OnChildFailure | None = None,
        **options: Unpack[ChildOptions],
    ) -> Child:
        """Make a job that is part of this one, and has its owner; see :meth:`spawn_all`."""
        child: NewChild = {"kind": kind, "payload": {} if payload is None else payload, **options}
        return (await self.spawn_all([child], on_child_failure=on_child_failure))[0]

    async def spawn_all(
        self, jobs: Iterable[NewChild], *, on_child_failure: OnChildFailure | None = None
    ) -> tuple[Child, ...]:
        """Make up to 10,000 jobs that are parts of this one: all in one call, or none.

        Each is a ``dict`` with a ``kind`` and, as it likes, ``payload`` and :class:`ChildOptions`. It has
        this job's owner, who pays for it.

        Spawn in every attempt: the handler runs again from the top when the children have ended, and
        after a crash, and what it spawns again is the same children. They are told apart by their
        ``key``, or else by how manieth they are spawned; a payload that differs from the first time's
        is an error. Give keys where the order may vary.

        ``on_child_failure`` is ``"continue"`` (a parent that waits runs when all children have ended, and
        looks at what they came to) or ``"fail"`` (the first one that does not complete ends the parent,
        ``CHILD_FAILED``, and cancels the others); None leaves it as it is, at first ``"continue"``.

        Returns the children in the order given. Raises an error that, if not caught, fails the job for
        good: ``CHILD_REFUSED``, with the reason, or ``INSUFFICIENT_CREDITS``.
        """
        wanted = [self._checked(child) for child in jobs]
        if not wanted:
            return ()
        ids = await self._desk.spawn(self._job, wanted, on_child_failure)
        self._adopt([Child(id=made, kind=child["kind"]) for made, child in zip(ids, wanted, strict=True)])
        return tuple(self._children[child_id] for child_id in ids)

    def _checked(self, child: NewChild) -> NewChild:
        """Return the child as plain JSON; one without a key has a number."""
        wire: dict[str, Any] = dict(child)
        key = child.get("key")
        if key is None:
            self._unnamed += 1
            wire["number"] = self._unnamed
        elif key.startswith("#"):
            reason = f"the key {key!r} of a child begins with #, as those of children without a key do"
            raise JobError(reason, code=ErrorCode.CHILD_REFUSED)
        try:
            plain: NewChild = to_jsonb(wire)
        except ValueError as error:
            reason = f"child {key or self._unnamed} ({child.get('kind')}) cannot be stored: {error}"
            raise JobError(reason, code=ErrorCode.CHILD_REFUSED) from error
        return plain

    async def _attempt(
        self, function: Callable[[JobItem[P]], Awaitable[Any]], item: JobItem[P]
    ) -> ItemOutcome:
        try:
            result = await function(item)
        except (Snooze, Wait, Cancel):
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling() or self._desk.stopping:
                raise
            # what it awaited was cancelled by others; a task group would pass over that in silence
            failure = Failure("HANDLER_CRASHED", "the item ended with CancelledError", retryable=True)
            self._desk.log(self._job, "warning", failure.message, {"item": item.key, "code": failure.code})
            return ItemOutcome(item.key, failure=failure)
        except (Exception, SystemExit, KeyboardInterrupt, GeneratorExit) as error:  # noqa: BLE001 - whatever a handler raises is classified, never lost
            failure = self._desk.classify(error)
            self._desk.log(self._job, "warning", failure.message, {"item": item.key, "code": failure.code})
            return ItemOutcome(item.key, failure=failure)
        try:
            return ItemOutcome(item.key, result=to_jsonb(result))
        except ValueError as error:
            return ItemOutcome(item.key, failure=invalid_result(f"the result of item {item.key!r}", error))


def fraction(done: float, total: float | None) -> float:
    """Turn ``done`` of ``total`` into 0..1; raises ``ValueError`` where that makes no sense."""
    if total is None:
        if not 0 <= done <= 1:
            raise ValueError(f"progress({done!r}): give a fraction from 0 to 1, or the total as well.")
        return float(done)
    if total < 0 or not 0 <= done <= total:
        raise ValueError(f"progress({done!r}, {total!r}): done must be from 0 to the total.")
    return done / total if total else 1.0


def invalid_result(what: str, error: ValueError) -> Failure:
    """Describe a result that cannot be stored."""
    return Failure("INVALID_RESULT", f"{what} cannot be stored: {error}", retryable=False)
