"""Group commit of outcomes: while one call is on its way, later outcomes gather for the next.

Checkpoints and items go before jobs, so a job is never ended before what it did is known. An outcome
handed in is kept until the API has taken or refused it, even when whoever waits for it is cancelled, and
on disk while the API is away; the fence (worker, attempt) makes repeating and lateness harmless.
"""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import structlog

from processor.answers import Attempt, CheckpointAnswer, Settled, Spawned
from processor.errors import (
    ApiError,
    ApiUnreachable,
    AuthFailed,
    SchemaMismatch,
    SchemaMissing,
    WorkerUnknown,
)
from processor.job import ItemOutcome, NewChild, OnChildFailure, Outcome, Step
from processor.keep import Entry, Keeper, Pile
from processor.rpc import Rpc
from processor.spool import Depth, Spool

_BATCH = 250
_LONGEST_PAUSE = 5.0
_WAIT = (ApiUnreachable, AuthFailed, SchemaMissing, SchemaMismatch, WorkerUnknown)
"""Refusals that say nothing about an outcome, which therefore waits; heartbeats register again."""

_ENDS = frozenset({Pile.JOB, Pile.RELEASE})
"""What an attempt ends with."""

log = structlog.get_logger("processor.settle")

T = TypeVar("T")


class Settler:
    """Makes outcomes durable. ``on_cancel`` hears of jobs that somebody wants cancelled.

    ``spool`` is where outcomes are kept while the API is away; None: in memory only.
    """

    def __init__(
        self,
        rpc: Rpc,
        worker_id: UUID,
        *,
        on_cancel: Callable[[Iterable[UUID]], None],
        spool: Spool | None = None,
    ) -> None:
        self._rpc = rpc
        self._worker_id = worker_id
        self._on_cancel = on_cancel
        self._checkpoints: list[Entry[Step]] = []
        self._items: list[Entry[ItemOutcome]] = []
        self._jobs: list[Entry[Outcome]] = []
        self._released: list[Entry[None]] = []
        self._promised: list[Entry[Any]] = []
        self._keeper = Keeper(spool, self._in_hand)
        self._wanted = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def waiting(self) -> dict[str, int]:
        """How many outcomes the API has not taken yet."""
        return {
            "checkpoints": len(self._checkpoints),
            "items": len(self._items),
            "jobs": len(self._jobs),
            "released": len(self._released),
        }

    async def checkpoint(self, job: Attempt, step: Step) -> Settled:
        """Make the result of a step durable; being cancelled while waiting does not take it back."""
        return await self._hand_in(self._checkpoints, self._entry(Pile.CHECKPOINT, job, step))

    async def item(self, job: Attempt, outcome: ItemOutcome) -> Settled:
        """Make an item's outcome durable; being cancelled while waiting does not take it back."""
        return await self._hand_in(self._items, self._entry(Pile.ITEM, job, outcome))

    async def job(self, job: Attempt, outcome: Outcome, *, after: Awaitable[None] | None = None) -> Settled:
        """End an attempt; ``after`` is awaited before the API is told, but the outcome is safe meanwhile."""
        return await self._hand_in(self._jobs, self._entry(Pile.JOB, job, outcome), after)

    async def release(self, job: Attempt, *, after: Awaitable[None] | None = None) -> Settled:
        """Give a job back without costing an attempt."""
        return await self._hand_in(self._released, self._entry(Pile.RELEASE, job, None), after)

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

    def resume(self, entries: Iterable[Entry[Any]]) -> None:
        """Take over outcomes that a dead process left."""
        piles: dict[Pile, list[Any]] = {
            Pile.CHECKPOINT: self._checkpoints,
            Pile.ITEM: self._items,
            Pile.JOB: self._jobs,
            Pile.RELEASE: self._released,
        }
        for entry in entries:
            piles[entry.pile].append(entry)
            self._empty.clear()
            self._wanted.set()

    async def flushed(self) -> None:
        """Wait until everything handed in is settled."""
        await self._empty.wait()

    @property
    def depth(self) -> Depth:
        """How much is on disk."""
        return self._keeper.depth

    @property
    def unsettled(self) -> frozenset[UUID]:
        """The jobs of which something waits for the API."""
        return frozenset(entry.job.id for entry in self._in_hand())

    async def kept(self, running: Callable[[], Iterable[Attempt]]) -> None:
        """Wait until all that ``running`` jobs still have to say is on disk: then only the API is missing."""
        while True:
            ends = {entry.job for entry in self._in_hand() if entry.pile in _ENDS}
            if (
                ends
                and ends.issuperset(running())
                and all(self._keeper.keeps(entry) for entry in self._in_hand())
            ):
                return
            await self._keeper.written()

    async def save(self) -> int:
        """Put everything in hand on disk; return how many outcomes are not safe there."""
        await self._keeper.save()
        return sum(1 for entry in self._in_hand() if not self._keeper.keeps(entry))

    async def close(self) -> None:
        """Let go of the disk, when :meth:`run` has ended."""
        await self._keeper.close()

    async def run(self) -> None:
        """Settle what is handed in, until cancelled."""
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._keeper.run(), name="keeper")
            parts.create_task(self._settle(), name="settling")

    async def _settle(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._checkpoints or self._items or self._jobs or self._released:
                await self._send(self._checkpoints, self._send_checkpoints)
                await self._send(self._items, self._send_items)
                await self._send(self._jobs, self._send_jobs)
                await self._send(self._released, self._send_released)
            if not self._promised:
                self._empty.set()

    def _in_hand(self) -> Iterable[Entry[Any]]:
        return itertools.chain(self._checkpoints, self._items, self._jobs, self._released, self._promised)

    @staticmethod
    def _entry(pile: Pile, job: Attempt, outcome: T) -> Entry[T]:
        loop = asyncio.get_running_loop()
        return Entry(pile, job, outcome, loop.create_future(), loop.time())

    async def _hand_in(
        self, pile: list[Entry[T]], entry: Entry[T], after: Awaitable[None] | None = None
    ) -> Settled:
        self._empty.clear()
        if after is not None:
            self._promised.append(entry)
            self._keeper.handed_in(entry)
            try:
                await after
            finally:
                self._promised.remove(entry)
                self._put(pile, entry)
        else:
            self._put(pile, entry)
            self._keeper.handed_in(entry)
        return await entry.answer  # whoever is cancelled here cancels its waiting, not the entry

    def _put(self, pile: list[Entry[T]], entry: Entry[T]) -> None:
        pile.append(entry)
        self._wanted.set()

    async def _send(
        self, pile: list[Entry[T]], send: Callable[[list[Entry[T]]], Awaitable[list[Settled]]]
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
                self._keeper.api_is_away()
                log.warning("settle.waiting", outcomes=len(batch), kept=self.depth.records, error=str(error))
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
        self._keeper.answered(batch)
        for entry, answer in zip(batch, answers, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(answer)

    async def _send_checkpoints(self, batch: list[Entry[Step]]) -> list[Settled]:
        answer = await self._rpc.save_checkpoints(
            self._worker_id, [(entry.job, entry.outcome) for entry in batch]
        )
        self._on_cancel(answer.cancel)
        return list(answer.results)

    async def _send_items(self, batch: list[Entry[ItemOutcome]]) -> list[Settled]:
        by_job: dict[tuple[UUID, int], list[Entry[ItemOutcome]]] = defaultdict(list)
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

    async def _send_jobs(self, batch: list[Entry[Outcome]]) -> list[Settled]:
        return list(
            await self._rpc.finish_jobs(self._worker_id, [(entry.job, entry.outcome) for entry in batch])
        )

    async def _send_released(self, batch: list[Entry[None]]) -> list[Settled]:
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
