"""Keeps outcomes on disk while the API is away, and forgets them when it has answered.

Nothing is written while the API answers: an outcome gets to the disk when it has waited for a second, or
when the API refuses to serve; from then on so does every further one, until a batch is answered.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Generic, TypeVar

import structlog
from pydantic import TypeAdapter

from processor.answers import Attempt, Settled
from processor.job import ItemOutcome, Outcome, Step
from processor.records import Record
from processor.spool import Depth, Spool

_PATIENCE = 1.0
"""Seconds that an outcome may be in hand before it is put on disk."""
_AGAIN = 5.0
"""Seconds until a disk that failed is tried again."""

log = structlog.get_logger("processor.spool")

T = TypeVar("T")


class Pile(StrEnum):
    """What kinds of outcomes there are; those of one kind go to the API together."""

    CHECKPOINT = "checkpoint"
    ITEM = "item"
    JOB = "job"
    RELEASE = "release"


_SHAPES: dict[Pile, TypeAdapter[Any]] = {
    Pile.CHECKPOINT: TypeAdapter(Step),
    Pile.ITEM: TypeAdapter(ItemOutcome),
    Pile.JOB: TypeAdapter(Outcome),
    Pile.RELEASE: TypeAdapter(None),
}


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One outcome, the future of whoever waits for it, and the number under which it is kept, if it is.

    ``since`` is when it came, by the loop's clock.
    """

    pile: Pile
    job: Attempt
    outcome: T
    answer: asyncio.Future[Settled]
    since: float
    number: int | None = None


class Keeper:
    """Watches over what is ``in_hand``. Without a spool it does nothing."""

    def __init__(self, spool: Spool | None, in_hand: Callable[[], Iterable[Entry[Any]]]) -> None:
        self._spool = spool
        self._in_hand = in_hand
        self._away = False
        self._gone: list[int] = []
        self._wanted = asyncio.Event()
        self._written = asyncio.Event()
        self._writing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._failed = False
        self._full = False
        self._keeping = False

    @property
    def depth(self) -> Depth:
        """How much is on disk."""
        return Depth(0, 0, 0.0) if self._spool is None else self._spool.depth

    def handed_in(self, entry: Entry[Any]) -> None:
        """Hear that an outcome waits for the API."""
        if self._spool is None:
            return
        if self._away:
            self._wanted.set()
        elif self._timer is None:
            self._look_later()

    def api_is_away(self) -> None:
        """Hear that the API does not serve: everything in hand is put on disk."""
        if self._spool is not None:
            self._away = True
            self._wanted.set()

    def answered(self, entries: Iterable[Entry[Any]]) -> None:
        """Hear that the API has taken or refused outcomes."""
        if self._away:
            self._away = False
            self._look_later()  # some may have been in hand for long already
        gone = [entry.number for entry in entries if entry.number is not None]
        # a file with nothing left in it goes with the last outcome in hand, which may never have been there
        if gone or self._failed or (self._spool is not None and self._spool.exists):
            self._gone += gone
            self._wanted.set()

    def keeps(self, entry: Entry[Any]) -> bool:
        """Whether an outcome is safe on disk."""
        return self._spool is not None and entry.number is not None and self._spool.keeps(entry.number)

    async def written(self) -> None:
        """Wait until something more has been put on disk."""
        self._written.clear()
        await self._written.wait()

    async def save(self) -> None:
        """Put everything in hand on disk now."""
        self.api_is_away()
        self._try_again()
        await self._write()

    async def close(self) -> None:
        """Forget what is settled, and leave the rest to heirs."""
        for timer in (self._timer, self._again):
            if timer is not None:
                timer.cancel()
        if self._spool is not None:
            self._away = False
            await self._write()
            await asyncio.to_thread(self._spool.close)

    async def run(self) -> None:
        """Write what there is to be written, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._write()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._look)

    def _look(self) -> None:
        """See whether an outcome waits for too long."""
        self._timer = None
        oldest = min((entry.since for entry in self._in_hand() if entry.number is None), default=None)
        if oldest is None:
            return
        if oldest <= asyncio.get_running_loop().time() - _PATIENCE / 2:
            self.api_is_away()
        else:
            self._look_later()

    async def _write(self) -> None:
        """Bring the disk up to what is in hand; a disk that cannot be written costs nothing but safety."""
        if self._spool is None:
            return
        async with self._writing:
            gone, self._gone = self._gone, []
            able = self._away and self._again is None
            fresh = [entry for entry in self._in_hand() if entry.number is None] if able else []
            idle = next(iter(self._in_hand()), None) is None
            if not fresh and not gone and not (idle and self._spool.exists):
                return
            # outcomes are never changed, so a thread may read them
            records = [self._record(self._spool, entry) for entry in fresh]
            try:
                if idle:
                    await asyncio.to_thread(self._spool.discard)
                else:
                    await asyncio.to_thread(self._spool.write, records, gone)
            except OSError as error:
                self._note_failure(self._spool, error)
            else:
                self._note_success(self._spool, tried=bool(fresh))
            finally:
                for entry in self._in_hand():
                    if entry.number is not None and not self._spool.keeps(entry.number):
                        entry.number = None
                self._written.set()

    @staticmethod
    def _record(spool: Spool, entry: Entry[Any]) -> Record:
        entry.number = spool.number()
        return Record(
            number=entry.number,
            worker_id=spool.worker_id,
            pile=entry.pile,
            job_id=entry.job.id,
            attempt=entry.job.attempt,
            at=time.time() - (asyncio.get_running_loop().time() - entry.since),
            body=_body(entry.outcome),
        )

    def _note_failure(self, spool: Spool, error: OSError) -> None:
        """Say it once, however long it lasts; results wait in memory meanwhile."""
        self._again = asyncio.get_running_loop().call_later(_AGAIN, self._try_again)
        if not self._failed:
            self._failed = True
            log.error(
                "spool.failed",
                directory=str(spool.directory),
                error=str(error),
                hint="Until it works, results that wait for the API would not survive this process: "
                "make room there, or give another PROCESSOR_SPOOL_DIR.",
            )

    def _note_success(self, spool: Spool, *, tried: bool) -> None:
        depth = spool.depth
        if tried and self._failed:
            self._failed = False
            log.info("spool.works_again", directory=str(spool.directory))
        if tried and not self._keeping and depth.records:
            self._keeping = True
            log.warning("spool.keeping", path=str(spool.path), outcomes=depth.records)
        if spool.full and not self._full:
            self._full = True
            log.error(
                "spool.full",
                path=str(spool.path),
                bytes=depth.bytes,
                hint="What does not fit waits in memory only: raise PROCESSOR_SPOOL_MAX_MB.",
            )
        if not depth.records and self._keeping:
            self._keeping = self._full = False
            log.info("spool.drained")

    def _try_again(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
            self._wanted.set()


def revived(record: Record) -> Entry[Any]:
    """Make an entry of what was kept; raises ``ValueError`` if it makes no sense."""
    pile = Pile(record.pile)
    loop = asyncio.get_running_loop()
    return Entry(
        pile,
        Attempt(id=record.job_id, attempt=record.attempt),
        _SHAPES[pile].validate_python(dict(record.body) or None),
        loop.create_future(),
        loop.time(),
        record.number,
    )


def _body(outcome: Any) -> dict[str, Any]:
    """Take an outcome apart, not deeper than needed: a result may be nested as deeply as JSON may be."""
    if outcome is None:
        return {}
    body = {part.name: getattr(outcome, part.name) for part in fields(outcome)}
    if body.get("failure") is not None:
        body["failure"] = asdict(body["failure"])
    return body
