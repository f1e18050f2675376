"""What is to happen to the connections of one kind."""

import asyncio
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["websocket", "http"]
Direction = Literal["up", "down"]
KINDS: tuple[Kind, ...] = ("websocket", "http")


@dataclass
class Rules:
    """The faults that connections of one kind suffer now."""

    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while everything is held."""
    refused: bool = False
    swallowed: bool = False
    """New connections lead nowhere."""
    dropped: set[Direction] = field(default_factory=set)
    delay: tuple[float, float] = (0.0, 0.0)
    """Seconds that every chunk is held: at least, at most."""
    speed: float = 0.0
    """Bytes per second, each way; 0: as fast as it goes."""
    status: int | None = None
    """What requests are answered with, in place of the server."""
    truncated: bool = False
    """Answers end in the middle."""
    mute: bool = False
    """Of a websocket no message comes down; it stays open, and its pings are answered."""
    join_delay: float = 0.0
    """Seconds that the answer to a channel's join is held, and all that follows it."""

    def __post_init__(self) -> None:
        self.flowing.set()

    def heal(self) -> None:
        """End every fault."""
        healthy = Rules(flowing=self.flowing)
        self.__dict__.update(healthy.__dict__)
