"""How full the queues are, told by the one daemon that reads the figures of the database."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from processor.figures import Figures
from processor.mqtt.messages import Message, Scribe

_EVERY = 10.0
_AGAIN = 30.0
"""Seconds after which it is told although nothing has changed."""
_EXPIRY = 90
"""Seconds after which the broker forgets it, when nobody tells it any more."""


class Depths:
    """Looks while ``connected``, and says what has changed."""

    def __init__(
        self,
        figures: Figures,
        scribe: Scribe,
        connected: Callable[[], bool],
        say: Callable[[Message], None],
    ) -> None:
        self._figures = figures
        self._scribe = scribe
        self._connected = connected
        self._say = say
        self._told: dict[str, tuple[dict[str, Any], float]] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            if self._connected():
                await self._figures.refresh()
                self._tell()
            await asyncio.sleep(_EVERY)

    def _tell(self) -> None:
        now = time.monotonic()
        for queue in self._figures.queues:
            figures = queue.model_dump(exclude={"queue"})
            before, at = self._told.get(queue.queue, ({}, 0.0))
            if figures != before or now - at > _AGAIN:
                self._told[queue.queue] = figures, now
                self._say(self._scribe.depth(queue.queue, figures, expiry=_EXPIRY))
