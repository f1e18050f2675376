"""Why an incarnation of the Realtime connection ended."""

from dataclasses import dataclass
from typing import Literal

Cause = Literal[
    "unreachable",  # no TCP, TLS or websocket within open_timeout, or refused by the network
    "refused",  # the server answered the handshake with an HTTP error
    "join_refused",  # the server answered the join with an error
    "join_timeout",  # the join, or the word that changes are streamed, did not come within join_timeout
    "closed",  # the socket was closed or reset
    "channel_error",  # phx_error, or a system message with an error
    "channel_closed",  # phx_close
    "ack_timeout",  # no broadcast acknowledgement within ack_timeout
    "ack_refused",  # an error for one
    "echo_timeout",  # the worker's own heartbeat did not come back as a change
    "listener_died",  # the client reads no more, though the socket looks open
    "stuck",  # nothing above was noticed, and yet nothing was heard: found by the judgement
    "crashed",  # an exception nobody foresaw
]

_REFUSALS = (
    *("HTTP 4", "RateLimit", "TooMany", "Too many", "DisabledForTenant"),
    *("Unauthorized", "JWT", "Token has expired"),
)
"""How Realtime words that it will not: to a handshake, a join, in a system message or a close reason."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an incarnation ended: a cause to act on and count, and a detail for people."""

    cause: Cause
    detail: str = ""

    @property
    def insisting_is_pointless(self) -> bool:
        """Whether the server said no in a way that a quick retry would only make worse."""
        return any(word in self.detail for word in _REFUSALS)

    def __str__(self) -> str:
        return f"{self.cause}: {self.detail}" if self.detail else self.cause
