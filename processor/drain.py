"""The end of a worker's work: a grace for what runs, the last results, then goodbye."""

import asyncio
import contextlib
import time
from uuid import UUID

import structlog

from processor.afterwards import Afterwards
from processor.config import Settings
from processor.errors import ApiError
from processor.rpc import Rpc
from processor.run import Stop
from processor.settle import Settler
from processor.worker import Worker

_FLUSH_SECONDS = 10.0
"""How long the last results may take on the way out; what does not make it is rescued by others."""

_SAVE_SECONDS = 5.0
"""How long the disk may take on the way out."""

_HOOK_SECONDS = 1.0
"""How long the hooks of the last results may take, where the jobs have left no more of the grace."""

_GOODBYE_SECONDS = 3.0
"""How long deregistering may take: without it the lease just runs out."""

log = structlog.get_logger("processor.daemon")


class Drain:
    """Brings a worker that claims no more to its end; ``hurry`` cuts the grace of what runs."""

    def __init__(
        self,
        rpc: Rpc,
        worker_id: UUID,
        worker: Worker,
        settler: Settler,
        afterwards: Afterwards,
        hurry: asyncio.Event,
    ) -> None:
        self._rpc = rpc
        self._id = worker_id
        self._worker = worker
        self._settler = settler
        self._afterwards = afterwards
        self._hurry = hurry

    async def finish(self, settings: Settings) -> int:
        """Let what runs end, or give it back; hand in or keep every result. Return how many are lost."""
        grace_ends = time.monotonic() + settings.grace_seconds
        if not await self._idle(settings.grace_seconds):
            log.warning("daemon.releasing", running=len(self._worker.running))
            self._worker.stop_all(Stop.RELEASE)
            await self._idle(settings.cancel_grace_seconds + 1, hurry=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._settler.flushed()
        lost = await self._save()
        await self._afterwards.close(max(grace_ends - time.monotonic(), _HOOK_SECONDS), self._hurry)
        return lost

    async def leave(self, settings: Settings) -> None:
        """Deregister, unless results are kept: the jobs they belong to would go back, and run again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SAVE_SECONDS):
                await self._settler.close()
        if kept := self._settler.depth.records:
            log.warning(
                "daemon.results_kept",
                outcomes=kept,
                directory=str(settings.spool_dir),
                hint="The next daemon that starts with this directory hands them in.",
            )
            return
        try:
            async with asyncio.timeout(_GOODBYE_SECONDS):
                await self._rpc.deregister_worker(self._id)
        except (ApiError, TimeoutError) as error:
            log.warning("daemon.not_deregistered", error=str(error) or "no answer in time")

    async def _save(self) -> int:
        """Put on disk what the API has not taken."""
        try:
            async with asyncio.timeout(_SAVE_SECONDS):
                lost = await self._settler.save()
        except TimeoutError:
            lost = len(self._settler.unsettled)
        if lost:
            log.error(
                "daemon.results_lost",
                outcomes=lost,
                reason="the API did not take them, and they are not on disk: their jobs run again",
            )
        return lost

    async def _idle(self, seconds: float, *, hurry: bool = True) -> bool:
        """Wait until nothing runs that could still be helped, for so long, or until somebody hurries."""
        idle = asyncio.create_task(self._worker.idle(), name="idle")
        kept = asyncio.create_task(self._settler.kept(lambda: self._worker.running), name="kept")
        hurried = asyncio.create_task(self._hurry.wait(), name="hurry")
        try:
            waits = {idle, kept, hurried} if hurry else {idle, kept}
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return idle.done() or kept.done()
        finally:
            for task in (idle, kept, hurried):
                task.cancel()
