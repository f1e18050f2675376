"""Hear when the schema changed: ``notify pgrst, 'reload schema'``, from an event trigger or a migration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

CHANNEL = "pgrst"
RETRY_SECONDS = 0.5
UNREACHABLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class SchemaWatch:
    """A connection that listens, between ``start`` and ``stop``; made anew when it is lost.

    Args:
        admin_dsn: of a superuser, who may install the event trigger.
        on_change: called at every notification, and after a time without connection.

    """

    def __init__(self, admin_dsn: str, on_change: Callable[[], None]) -> None:
        self._dsn = admin_dsn
        self._on_change = on_change
        self._lost = asyncio.Event()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Install the event trigger, and the function that runs calls; then listen."""
        await self._listen()
        self._task = asyncio.create_task(self._stay_connected(), name="rest-schema-watch")
        self._task.add_done_callback(_report)

    async def stop(self) -> None:
        """Listen no more; harmless when not started."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._connection is not None:
            self._connection.remove_termination_listener(self._on_lost)
            with suppress(*UNREACHABLE):
                await self._connection.close(timeout=1)
            self._connection = None

    async def _listen(self) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            for name in ("watch.sql", "execute.sql"):
                await connection.execute(Path(__file__).with_name(name).read_text())
            await connection.add_listener(CHANNEL, self._on_notify)
        except BaseException:
            connection.terminate()
            raise
        connection.add_termination_listener(self._on_lost)
        self._connection = connection

    async def _stay_connected(self) -> None:
        while True:
            await self._lost.wait()
            self._lost.clear()
            while True:
                try:
                    await self._listen()
                    break
                except UNREACHABLE:  # requests say so themselves meanwhile
                    await asyncio.sleep(RETRY_SECONDS)
            self._on_change()

    def _on_notify(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        if payload in {"", "reload schema"}:
            self._on_change()

    def _on_lost(self, _connection: Any) -> None:
        self._lost.set()


def _report(task: asyncio.Task[None]) -> None:
    """Say loudly that the watch died; without it answers could have an old shape."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {
                "message": "the REST gateway no longer hears of schema changes",
                "exception": error,
                "task": task,
            }
        )
