"""Offers the API what dead processes left on disk, under their names: the fence decides what still counts."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import structlog

from processor.errors import ApiUnreachable
from processor.keep import revived
from processor.records import Contents
from processor.rpc import Rpc
from processor.settle import Settler
from processor.spool import CORRUPT, Spool, files, trouble

log = structlog.get_logger("processor.spool")


class Replay:
    """Looks after the files in ``directory`` whose owners are dead."""

    def __init__(self, rpc: Rpc, directory: Path) -> None:
        self._rpc = rpc
        self._directory = directory
        self._passed_over: set[Path] = set()

    async def first(self) -> None:
        """Replay what there is, however long the API is away: what comes after it may take these jobs away.

        Raises ``ApiError`` if the API is there and refuses to serve this daemon at all.
        """
        if (problem := await asyncio.to_thread(trouble, self._directory)) is not None:
            log.error(
                "spool.unusable",
                directory=str(self._directory),
                error=str(problem),
                hint="Results that wait for the API would not survive this process: make the directory "
                "writable, or give another PROCESSOR_SPOOL_DIR, or none.",
            )
        heirlooms = await asyncio.to_thread(lambda: list(self._adopt()))
        try:
            if heirlooms:
                await self._until_served()
            for spool, contents in heirlooms:
                await self._offer(spool, contents)
        finally:
            for spool, _ in heirlooms:
                spool.close()

    async def run(self, every: float) -> None:
        """Replay what processes leave that die from now on; look every so many seconds, until cancelled."""
        while True:
            await asyncio.sleep(every * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            for spool, contents in await asyncio.to_thread(lambda: list(self._adopt())):
                try:
                    await self._offer(spool, contents)
                finally:
                    spool.close()

    def _adopt(self) -> Iterator[tuple[Spool, Contents]]:
        """Take over what nobody owns any more; blocks."""
        for path in files(self._directory):
            if path in self._passed_over:
                continue
            try:
                adopted = Spool.adopt(path, self._rpc.url)
            except OSError as error:
                self._passed_over.add(path)
                log.error("spool.unreadable", path=str(path), error=str(error))  # noqa: TRY400 - a fact, not a bug
                continue
            if adopted is None:
                continue
            spool, contents = adopted
            if contents.strange is None:
                yield spool, contents
            else:
                self._pass_over(spool, contents.strange)

    async def _until_served(self) -> None:
        for tries in itertools.count(1):
            try:
                await self._rpc.finish_jobs(uuid4(), ())
            except ApiUnreachable as error:
                log.warning("spool.waiting", directory=str(self._directory), error=str(error))
            else:
                return
            await asyncio.sleep(random.uniform(0, min(5.0, 0.5 * 2 ** min(tries, 8))))  # noqa: S311 - jitter

    async def _offer(self, spool: Spool, contents: Contents) -> None:
        """Offer what a file has, items before jobs, until all of it is answered; then remove the file."""
        path = spool.path
        try:
            entries = [revived(record) for record in contents.records]
        except ValueError as error:
            self._pass_over(spool, f"it has an outcome that this version does not know: {error}")
            return
        settler = Settler(self._rpc, spool.worker_id, on_cancel=lambda _ids: None, spool=spool)
        settler.resume(entries)
        async with asyncio.TaskGroup() as group:
            settling = group.create_task(settler.run(), name=f"replay:{spool.worker_id}")
            try:
                await settler.flushed()
            finally:
                settling.cancel()
        await settler.close()
        answers = [(entry, entry.answer.result()) for entry in entries]
        for job, answer in {entry.job: answer for entry, answer in answers if answer.stale}.items():
            log.warning("spool.stale", job_id=str(job.id), attempt=job.attempt, status=answer.status)
        for job, answer in {entry.job: answer for entry, answer in answers if answer.error}.items():
            log.error("spool.refused", job_id=str(job.id), attempt=job.attempt, error=answer.error)
        log.info(
            "spool.replayed",
            path=str(path),
            worker_id=str(spool.worker_id),
            outcomes=dict(Counter(str(entry.pile) for entry in entries)),
            taken=sum(not answer.stale and answer.error is None for _, answer in answers),
            stale=sum(answer.stale for _, answer in answers),
            refused=sum(answer.error is not None for _, answer in answers),
        )
        if contents.torn:
            log.warning(
                "spool.torn", path=str(path), reason="its process died while it wrote the last outcome"
            )
        if contents.broken:
            log.error(
                "spool.broken",
                lines=contents.broken,
                path=str(path and path.with_suffix(CORRUPT)),
                hint="Something has changed what was written: the jobs concerned run again. "
                "The file is kept for whoever looks into it; delete it when done.",
            )

    def _pass_over(self, spool: Spool, reason: str) -> None:
        """Leave a file to whoever understands it, and say so once."""
        if spool.path is not None:
            self._passed_over.add(spool.path)
            log.warning(
                "spool.passed_over",
                path=str(spool.path),
                reason=reason,
                hint="A daemon that knows it takes it up. Delete it if there is none any more.",
            )
        spool.close()
