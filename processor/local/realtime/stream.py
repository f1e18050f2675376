"""Read committed changes from the WAL as they happen, over one replication connection.

psycopg has no public API for replication; its ``pgconn`` is libpq itself, which has all that is needed. The
slot is temporary: PostgreSQL removes it with the connection, so no WAL is ever kept for a dead gateway.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

# values arrive as text: fix the forms that depend on settings, to those that JSON output has
SETTINGS = (
    "-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres -c bytea_output=hex -c extra_float_digits=1"
    " -c client_encoding=UTF8"
)
MESSAGES_AT_ONCE = 256
CONFIRM_AFTER = 1.0

_wal_data = struct.Struct("!cqqq")
_keepalive = struct.Struct("!cqqc")
_status = struct.Struct("!cqqqqc")


class StreamError(Exception):
    """The stream could not start or has ended; the message says why and what to do."""


class Stream:
    """The changes of some publications from the moment it is opened.

    Iterating yields lists of raw pgoutput messages. The reader sets the pace: while it does not ask for more,
    the server waits, so a flood needs no memory here. Use `Stream.open`.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._received = 0
        self._confirmed = 0
        self._confirmation: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, dsn: str, *publications: str) -> Self:
        """Connect, make a slot and start; whatever commits after this returns will be delivered.

        Args:
            dsn: of a role that may replicate.
            publications: the names of existing publications.

        Raises:
            StreamError: the server refuses.

        """
        try:
            connection = await psycopg.AsyncConnection.connect(
                dsn, autocommit=True, replication="database", options=SETTINGS
            )
        except psycopg.Error as error:
            raise StreamError(f"cannot connect for replication: {error}") from error
        stream = cls(connection)
        slot = f"realtime_{secrets.token_hex(8)}"
        try:
            await stream._command(
                f'CREATE_REPLICATION_SLOT "{slot}" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT'
            )
            names = ",".join('"' + name.replace("'", "''").replace('"', '""') + '"' for name in publications)
            await stream._command(
                f'START_REPLICATION SLOT "{slot}" LOGICAL 0/0'
                f" (proto_version '1', publication_names '{names}')"
            )
        except BaseException:
            await connection.close()
            raise
        return stream

    async def close(self) -> None:
        """End the connection and with it the slot; harmless if it is closed already."""
        if self._confirmation is not None:
            self._confirmation.cancel()
            self._confirmation = None
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[list[bytes]]:
        """Yield messages as they come, at most 256 at once.

        Raises:
            StreamError: the server ended the stream or the connection.

        """
        while True:
            try:
                messages = self._read()
            except psycopg.Error as error:
                raise StreamError(f"the replication connection broke: {error}") from error
            if messages:
                yield messages
                await asyncio.sleep(0)  # a flood must not starve the sockets
            else:
                await self._readable()
                try:
                    self._pgconn.consume_input()
                except psycopg.Error as error:
                    raise StreamError(f"the replication connection broke: {error}") from error

    def _read(self) -> list[bytes]:
        messages: list[bytes] = []
        while len(messages) < MESSAGES_AT_ONCE:
            length, view = self._pgconn.get_copy_data(1)
            if length == 0:
                break
            if length < 0:
                raise StreamError(f"the server ended replication: {self._reason()}")
            data = bytes(view)
            if data[:1] == b"w":
                self._received = max(self._received, _wal_data.unpack_from(data)[1])
                messages.append(data[_wal_data.size :])
            else:
                _, end, _, answer_now = _keepalive.unpack_from(data)
                self._received = max(self._received, end)
                if answer_now == b"\x01":
                    self._confirm()
        if self._received > self._confirmed and self._confirmation is None:
            self._confirmation = self._loop.call_later(CONFIRM_AFTER, self._confirm)
        return messages

    def _confirm(self) -> None:
        """Tell the server how far we are, so that it can let go of old WAL."""
        if self._confirmation is not None:
            self._confirmation.cancel()
            self._confirmation = None
        self._confirmed = position = self._received
        try:
            self._pgconn.put_copy_data(_status.pack(b"r", position, position, position, 0, b"\x00"))
            self._pgconn.flush()
        except psycopg.Error:
            return  # the reader meets the same broken connection and reports it

    async def _command(self, sql: str) -> None:
        try:
            self._pgconn.send_query(sql.encode())
            self._pgconn.flush()
            while (result := await self._result()) is not None:
                if result.status == ExecStatus.COPY_BOTH:
                    return
                if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
                    raise StreamError(_advice(result.get_error_message()))
        except psycopg.Error as error:
            raise StreamError(f"the replication connection broke: {error}") from error

    async def _result(self) -> PGresult | None:
        while self._pgconn.is_busy():
            await self._readable()
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    async def _readable(self) -> None:
        ready = self._loop.create_future()
        descriptor = self._pgconn.socket

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(descriptor, wake)
        try:
            await ready
        finally:
            self._loop.remove_reader(descriptor)

    def _reason(self) -> str:
        result = self._pgconn.get_result()
        text = result.get_error_message() if result is not None else self._pgconn.get_error_message()
        return text.strip() or "no reason given"


def _advice(reason: str) -> str:
    if "wal_level" in reason:
        return f"{reason.strip()}: start PostgreSQL with wal_level=logical to receive changes"
    return f"the server refuses replication: {reason.strip()}"
