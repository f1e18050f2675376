"""Group commit of outcomes: while one call is on its way, later outcomes gather for the next.

Checkpoints and items go before jobs, so a job is never ended before what it did is known. An outcome
handed in is kept until the API has taken or refused it, even when whoever waits for it is cancelled;
the fence (worker, attempt) makes repeating and lateness harmless.
"""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

import structlog

from processor.errors import (
    ApiError,
    ApiUnreachable,
    AuthFailed,
    SchemaMismatch,
    SchemaMissing,
    WorkerUnknown,
)
from processor.job import ItemOutcome, NewChild, OnChildFailure, Outcome, Step
from processor.rpc import Attempt, CheckpointAnswer, Rpc, Settled, Spawned

_BATCH = 100
_LONGEST_PAUSE = 5.0
_WAIT = (ApiUnreachable, AuthFailed, SchemaMissing, SchemaMismatch, WorkerUnknown)
"""Refusals that say nothing about an outcome, which therefore waits; heartbeats register again."""

log = structlog.get_logger("processor.settle")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class _Entry(Generic[T]):
    """One outcome and the future of whoever waits for it."""

    job: Attempt
    outcome: T
    answer: asyncio.Future[Settled]


class Settler:
    """Makes outcomes durable. ``on_cancel`` hears of jobs that somebody wants cancelled."""

    def __init__(self, rpc: Rpc, worker_id: UUID, *, on_cancel: Callable[[Iterable[UUID]], None]) -> None:
        self._rpc = rpc
        self._worker_id = worker_id
        self._on_cancel = on_cancel
        self._checkpoints: list[_Entry[Step]] = []
        self._items: list[_Entry[ItemOutcome]] = []
        self._jobs: list[_Entry[Outcome]] = []
        self._released: list[_Entry[None]] = []
        self._wanted = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    async def checkpoint(self, job: Attempt, step: Step) -> Settled:
        """Make the result of a step durable; being cancelled while waiting does not take it back."""
        return await self._hand_in(self._checkpoints, job, step)

    async def item(self, job: Attempt, outcome: ItemOutcome) -> Settled:
        """Make an item's outcome durable; being cancelled while waiting does not take it back."""
        return await self._hand_in(self._items, job, outcome)

    async def job(self, job: Attempt, outcome: Outcome) -> Settled:
        """End an attempt."""
        return await self._hand_in(self._jobs, job, outcome)

    async def release(self, job: Attempt) -> Settled:
        """Give a job back without costing an attempt."""
        return await self._hand_in(self._released, job, None)

    async def spawn(
        self, job: Attempt, children: Sequence[NewChild], on_child_failure: OnChildFailure | None
    ) -> Spawned:
        """Make children of a running job, however long the API is away; raises ``ApiError`` if it refuses.

        Unlike an outcome it ends with whoever waits for it: the job's next attempt spawns the same.
        """
        return await _answered(
            lambda: self._rpc.spawn_jobs(self._worker_id, job, children, on_child_failure=on_child_failure),
            children=len(children),
        )

    async def read_checkpoint(self, job: Attempt, name: str) -> CheckpointAnswer:
        """Get a result that was left out, however long the API is away; raises ``ApiError`` if it refuses."""
        return await _answered(lambda: self._rpc.read_checkpoint(self._worker_id, job, name), checkpoint=name)

    async def flushed(self) -> None:
        """Wait until everything handed in is settled."""
        await self._empty.wait()

    async def run(self) -> None:
        """Settle what is handed in, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._checkpoints or self._items or self._jobs or self._released:
                await self._send(self._checkpoints, self._send_checkpoints)
                await self._send(self._items, self._send_items)
                await self._send(self._jobs, self._send_jobs)
                await self._send(self._released, self._send_released)
            self._empty.set()

    def _hand_in(self, pile: list[_Entry[T]], job: Attempt, outcome: T) -> Awaitable[Settled]:
        entry = _Entry(job, outcome, asyncio.get_running_loop().create_future())
        pile.append(entry)
        self._empty.clear()
        self._wanted.set()
        return asyncio.shield(entry.answer)

    async def _send(
        self, pile: list[_Entry[T]], send: Callable[[list[_Entry[T]]], Awaitable[list[Settled]]]
    ) -> None:
        """Send the next batch of a pile, until it is taken or refused; then say so to who waits."""
        batch = pile[:_BATCH]
        if not batch:
            return
        pauses = 0
        while True:
            try:
                answers = await send(batch)
                break
            except _WAIT as error:
                log.warning("settle.waiting", outcomes=len(batch), error=str(error))
                batch = batch[: max(1, len(batch) // 2)]  # it may have been too big for what stands between
            except ApiError as error:
                if len(batch) == 1:
                    log.warning("settle.refused", job_id=str(batch[0].job.id), error=str(error))
                    answers = [Settled(id=batch[0].job.id, stale=False, error=str(error))]
                    break
                batch = batch[:1]  # one spoils the batch: alone, it spoils no other
                continue
            pauses += 1
            await _pause(pauses)
        del pile[: len(batch)]
        for entry, answer in zip(batch, answers, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(answer)

    async def _send_checkpoints(self, batch: list[_Entry[Step]]) -> list[Settled]:
        answer = await self._rpc.save_checkpoints(
            self._worker_id, [(entry.job, entry.outcome) for entry in batch]
        )
        self._on_cancel(answer.cancel)
        return list(answer.results)

    async def _send_items(self, batch: list[_Entry[ItemOutcome]]) -> list[Settled]:
        by_job: dict[tuple[UUID, int], list[_Entry[ItemOutcome]]] = defaultdict(list)
        for entry in batch:
            by_job[entry.job.id, entry.job.attempt].append(entry)
        answer = await self._rpc.finish_items(
            self._worker_id,
            [(entries[0].job, [entry.outcome for entry in entries]) for entries in by_job.values()],
        )
        self._on_cancel(answer.cancel)
        answers: dict[int, Settled] = {}
        for entries, settled in zip(by_job.values(), answer.results, strict=True):
            if settled.error is not None and len(entries) > 1:
                for entry in entries:
                    answers[id(entry)] = (await self._send_items([entry]))[0]
            else:
                answers |= {id(entry): settled for entry in entries}
        return [answers[id(entry)] for entry in batch]

    async def _send_jobs(self, batch: list[_Entry[Outcome]]) -> list[Settled]:
        return list(
            await self._rpc.finish_jobs(self._worker_id, [(entry.job, entry.outcome) for entry in batch])
        )

    async def _send_released(self, batch: list[_Entry[None]]) -> list[Settled]:
        return list(await self._rpc.release_jobs(self._worker_id, [entry.job for entry in batch]))


async def _answered(call: Callable[[], Awaitable[T]], **fields: Any) -> T:
    """Repeat a call until the API takes or refuses it."""
    for tries in itertools.count(1):
        try:
            return await call()
        except _WAIT as error:
            log.warning("settle.waiting", error=str(error), **fields)
        await _pause(tries)
    raise AssertionError("unreachable: it is tried until it is answered")


async def _pause(tries: int) -> None:
    """Let the API come back: longer the more often it was asked in vain."""
    await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE, 0.5 * 2 ** min(tries, 8))))  # noqa: S311 - jitter
