"""Who is in which topic: broadcasts to everybody there, and presence.

A private topic and a public one of the same name are two topics.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

from processor.local.realtime.wire import Broadcast, dumps

Key: TypeAlias = tuple[str, bool]


class Member(Protocol):
    """A channel, as a topic sees it."""

    @property
    def key(self) -> Key:
        """The topic's name and whether it is private."""

    def push(self, event: str, payload: str) -> None:
        """Send JSON text."""

    def push_broadcast(self, broadcast: Broadcast) -> None:
        """Send a user's message."""

    def restart(self) -> None:
        """Close the socket, so that the client comes again."""

    @property
    def hears_broadcasts(self) -> bool:
        """Whether it may: who was let into a private topic for its presence alone may not."""


class Topics:
    """The members of every topic and what they track about themselves."""

    def __init__(self) -> None:
        self._members: dict[Key, set[Member]] = {}
        self._presence: dict[Key, dict[Member, tuple[str, dict[str, Any]]]] = {}
        self._references = itertools.count(1)

    def join(self, member: Member) -> None:
        """Add a member."""
        self._members.setdefault(member.key, set()).add(member)

    def leave(self, member: Member) -> None:
        """Remove a member and its presence; harmless if it is gone."""
        self.untrack(member)
        members = self._members.get(member.key)
        if members is not None:
            members.discard(member)
            if not members:
                del self._members[member.key]

    def private_members(self) -> list[Member]:
        """Return everybody in a private topic: the database may send there."""
        return [member for (_, private), members in self._members.items() if private for member in members]

    def broadcast(
        self, key: Key, message: Broadcast | dict[str, Any], *, sender: Member | None = None
    ) -> None:
        """Send a message to all members but ``sender``; a mapping goes out as it is, as JSON."""
        text = None if isinstance(message, Broadcast) else dumps(message)
        for member in self._others(key, sender):
            if not member.hears_broadcasts:
                continue
            if isinstance(message, Broadcast):
                member.push_broadcast(message)
            elif text is not None:
                member.push("broadcast", text)

    def track(self, member: Member, name: str, payload: dict[str, Any]) -> None:
        """Set what ``member`` says about itself under ``name``, and tell the topic what changed."""
        present = self._presence.setdefault(member.key, {})
        before = present.get(member)
        meta = {**payload, "phx_ref": f"F{next(self._references):x}"}
        if before is not None:
            meta["phx_ref_prev"] = before[1]["phx_ref"]
        present[member] = (name, meta)
        self._tell(member.key, joins=[(name, meta)], leaves=[] if before is None else [before])

    def untrack(self, member: Member) -> None:
        """Forget what ``member`` said about itself, and tell the topic."""
        present = self._presence.get(member.key, {})
        before = present.pop(member, None)
        if not present:
            self._presence.pop(member.key, None)
        if before is not None:
            self._tell(member.key, joins=[], leaves=[before])

    def presence_state(self, key: Key) -> str:
        """Return everybody's presence as the JSON text of a ``presence_state`` event."""
        return dumps(_grouped(self._presence.get(key, {}).values()))

    def _tell(
        self,
        key: Key,
        joins: Iterable[tuple[str, dict[str, Any]]],
        leaves: Iterable[tuple[str, dict[str, Any]]],
    ) -> None:
        text = dumps({"joins": _grouped(joins), "leaves": _grouped(leaves)})
        for member in self._others(key, None):
            member.push("presence_diff", text)

    def _others(self, key: Key, sender: Member | None) -> list[Member]:
        return [member for member in self._members.get(key, ()) if member is not sender]


def _grouped(entries: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, meta in entries:
        grouped.setdefault(name, {"metas": []})["metas"].append(meta)
    return grouped
