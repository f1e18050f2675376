"""Who is told of changes: channels, what they asked for, and one change on its way to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from processor.local.realtime.bindings import Binding
from processor.local.realtime.tables import Access


class Subscriber(Protocol):
    """A channel, as changes see it."""

    def push_change(self, ids: Sequence[int], document: str) -> None:
        """Send a change to the bindings with these ids."""

    async def drain(self) -> None:
        """Wait until little is left to send."""

    def system(self, extension: str, status: str, message: str) -> None:
        """Send a system message."""

    def restart(self) -> None:
        """Close the socket, so that the client comes again and looks at what it missed."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A binding of a channel, with the role and claims of its token."""

    subscriber: Subscriber
    binding: Binding
    role: str
    claims: str


@dataclass(slots=True)
class Delivery:
    """One change on its way to one subscription."""

    subscription: Subscription
    access: Access
    error: str | None = None
