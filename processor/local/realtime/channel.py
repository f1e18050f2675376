"""One joined topic of one socket: its configuration, its token, what it sends and receives."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import asyncpg

from processor.local.jwt import Jwt
from processor.local.realtime.bindings import Binding, SubscriptionError
from processor.local.realtime.changes import Changes
from processor.local.realtime.permissions import EVERYTHING, Permissions
from processor.local.realtime.tokens import Bearer, TokenError, bearer, expired
from processor.local.realtime.topics import Key, Topics
from processor.local.realtime.wire import Broadcast, Frame, dumps

PREFIX = "realtime:"
LONGEST_TIMER = 24 * 3600.0
RESTART_DELAY = 1.0

log = logging.getLogger(__name__)


class JoinError(Exception):
    """A join that is refused; the message is the reason that the client gets."""


class Connection(Protocol):
    """A socket, as its channels see it."""

    def push(
        self, topic: str, event: str, payload: str, *, ref: str | None = None, join_ref: str | None = None
    ) -> None:
        """Send JSON text."""

    def push_broadcast(self, topic: str, broadcast: Broadcast) -> None:
        """Send a user's message."""

    async def drain(self) -> None:
        """Wait until little is left to send; a client that does not read is closed."""

    def close(self, code: int, reason: str) -> None:
        """Close the socket after what has been pushed."""

    def forget(self, channel: Channel) -> None:
        """Drop a channel that has ended."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all channels use."""

    jwt: Jwt
    topics: Topics
    changes: Changes
    permissions: Permissions


class Channel:
    """A topic that a client has joined.

    Args:
        connection: the socket it belongs to.
        shared: the parts it works with.
        frame: the client's join.
        token: the socket's own token, for a join that brings none.

    Raises:
        JoinError: the token is refused; `authorise` says whether the topic is.

    """

    def __init__(self, connection: Connection, shared: Shared, frame: Frame, token: str) -> None:
        payload = frame.payload if isinstance(frame.payload, dict) else {}
        config = _mapping(payload.get("config"))
        broadcast, presence = _mapping(config.get("broadcast")), _mapping(config.get("presence"))
        self.topic = frame.topic
        self.join_ref = frame.join_ref or frame.ref
        self.name = frame.topic.removeprefix(PREFIX)
        self.private = config.get("private") is True
        self._connection = connection
        self._shared = shared
        self._rights = EVERYTHING
        self._acknowledges = broadcast.get("ack") is True
        self._tells_when_streaming = broadcast.get("replication_ready") is True
        self._echoes = broadcast.get("self") is True
        self._presence_key = str(presence.get("key") or uuid.uuid4())
        self._presence_enabled = presence.get("enabled") is True
        self._params = [each for each in config.get("postgres_changes") or () if isinstance(each, dict)]
        self._expiry: asyncio.TimerHandle | None = None
        self._subscribing: asyncio.Task[None] | None = None
        self._announcing: asyncio.Task[None] | None = None
        given = payload.get("access_token") or payload.get("user_token")
        if not isinstance(given, str) or given.startswith("sb_"):
            given = token  # a key of the new kind is no token: the socket's own stands for it
        self._bearer = self._verified(given)

    @property
    def key(self) -> Key:
        """The topic's name and whether it is private."""
        return (self.name, self.private)

    @property
    def hears_broadcasts(self) -> bool:
        """Whether the policies let it."""
        return "broadcast" in self._rights.read

    async def authorise(self) -> None:
        """Ask the policies, if the topic is private.

        Raises:
            JoinError: nothing there may be heard, or the database could not be asked.

        """
        if not self.private:
            return
        try:
            self._rights = await self._shared.permissions.of(self._bearer, self.name)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("realtime: the policies for %s could not be asked: %s", self.topic, error)
            raise JoinError("Realtime was unable to connect to the project database") from error
        if not self._rights.read:
            raise JoinError(
                f"Unauthorized: You do not have permissions to read from this Channel topic: {self.name}"
            )

    def open(self, frame: Frame) -> None:
        """Answer the join and begin."""
        bindings = [{**params, "id": number} for number, params in enumerate(self._params, start=1)]
        self.reply(frame, "ok", {"postgres_changes": bindings})
        self._shared.topics.join(self)
        if self._presence_enabled:
            self.push("presence_state", self._shared.topics.presence_state(self.key))
        self._watch_expiry()
        self._subscribe()
        if self._tells_when_streaming:
            self._announcing = asyncio.create_task(
                self._announce_streaming(), name=f"realtime-announce-{self.topic}"
            )

    async def receive(self, frame: Frame) -> None:
        """Handle one message of the client to this topic."""
        if frame.event == "phx_leave":
            self.reply(frame, "ok")
            self.close()
        elif frame.event == "broadcast":
            self._broadcast(frame)
        elif frame.event == "access_token" and isinstance(frame.payload, dict):
            await self._access_token(frame.payload.get("access_token"))
        elif frame.event == "presence" and isinstance(frame.payload, dict):
            self._presence(frame, frame.payload)
        else:
            log.debug("realtime: %s ignores the event %r", self.topic, frame.event)

    def close(self) -> None:
        """End the channel and say so to the client."""
        self.dispose()
        self._connection.push(self.topic, "phx_close", "{}", ref=self.join_ref, join_ref=self.join_ref)
        self._connection.forget(self)

    def dispose(self) -> None:
        """Let go of everything, in silence; harmless when repeated."""
        for task in (self._subscribing, self._announcing):
            if task is not None:
                task.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        self._shared.changes.unsubscribe(self)
        self._shared.topics.leave(self)

    async def drain(self) -> None:
        """Wait until little is left to send."""
        await self._connection.drain()

    def restart(self) -> None:
        """Close the socket, so that the client comes again."""
        self._connection.close(1012, "changes may have been missed: connect again")

    def reply(self, frame: Frame, status: str, response: Any = None) -> None:
        """Answer one message of the client."""
        payload = dumps({"status": status, "response": {} if response is None else response})
        self._connection.push(self.topic, "phx_reply", payload, ref=frame.ref, join_ref=self.join_ref)

    def push(self, event: str, payload: str) -> None:
        """Send JSON text."""
        self._connection.push(self.topic, event, payload)

    def push_broadcast(self, broadcast: Broadcast) -> None:
        """Send a user's message."""
        self._connection.push_broadcast(self.topic, broadcast)

    def push_change(self, ids: Sequence[int], document: str) -> None:
        """Send a change to the bindings with these ids."""
        self.push("postgres_changes", f'{{"ids":{dumps(list(ids))},"data":{document}}}')

    def system(self, extension: str, status: str, message: str) -> None:
        """Send a system message."""
        payload = {"extension": extension, "status": status, "message": message, "channel": self.name}
        self._connection.push(self.topic, "system", dumps(payload), join_ref=self.join_ref)

    def _verified(self, token: str) -> Bearer:
        try:
            return bearer(self._shared.jwt, token)
        except TokenError as error:
            raise JoinError(f"{error.code}: {error.message}") from error

    async def _access_token(self, token: Any) -> None:
        if not isinstance(token, str) or token.startswith("sb_") or token == self._bearer.token:
            return
        try:
            self._bearer = self._verified(token)
            await self.authorise()
        except JoinError as error:
            self._shut_down(str(error).partition(": ")[2])
            return
        self._watch_expiry()
        self._subscribe()

    def _watch_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        remaining = self._bearer.expires_at - time.time()
        if remaining <= 0:
            self._shut_down(expired(self._bearer.expires_at))
        else:
            self._expiry = asyncio.get_running_loop().call_later(
                min(remaining, LONGEST_TIMER), self._watch_expiry
            )

    def _shut_down(self, reason: str) -> None:
        self.system("system", "error", reason)
        self.close()

    def _subscribe(self) -> None:
        if self._subscribing is not None:
            self._subscribing.cancel()
            self._subscribing = None
        if self._params:
            self._subscribing = asyncio.create_task(
                self._subscribe_to_changes(self._bearer), name=f"realtime-subscribe-{self.topic}"
            )

    async def _subscribe_to_changes(self, current: Bearer) -> None:
        try:
            bindings = [Binding.parse(number, params) for number, params in enumerate(self._params, start=1)]
            await self._shared.changes.subscribe(self, bindings, current)
        except SubscriptionError as error:
            self._shared.changes.unsubscribe(self)  # what an earlier token was allowed to hear
            self.system("postgres_changes", "error", str(error))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("realtime: %s could not subscribe, it must come again: %s", self.topic, error)
            await self._restart_later()
        except Exception:
            log.exception("realtime: %s could not subscribe, it must come again", self.topic)
            await self._restart_later()
        else:
            self.system("postgres_changes", "ok", "Subscribed to PostgreSQL")

    async def _announce_streaming(self) -> None:
        await self._shared.changes.until_live()
        self.system("system", "ok", "Replication connection established")

    async def _restart_later(self) -> None:
        """Send the client away to come again, but not in a tight loop."""
        await asyncio.sleep(RESTART_DELAY)
        self.restart()

    def _broadcast(self, frame: Frame) -> None:
        if "broadcast" not in self._rights.write:
            return  # as the hosted server: no word of it
        self._shared.topics.broadcast(self.key, frame.payload, sender=None if self._echoes else self)
        if self._acknowledges:
            self.reply(frame, "ok")

    def _presence(self, frame: Frame, payload: dict[str, Any]) -> None:
        event, topics = str(payload.get("event", "")).lower(), self._shared.topics
        if "presence" not in self._rights.write:
            self.reply(frame, "error")
            return
        if event == "track":
            tracked = payload.get("payload", {})
            if not isinstance(tracked, dict):
                self.reply(frame, "error", {"reason": "Presence track payload must be a map"})
                return
            if not self._presence_enabled:
                self._presence_enabled = True
                self.push("presence_state", topics.presence_state(self.key))
            topics.track(self, self._presence_key, tracked)
        elif event == "untrack":
            topics.untrack(self)
        else:
            self.reply(frame, "error", {"reason": f"unknown presence event {event!r}: use track or untrack"})
            return
        self.reply(frame, "ok")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
