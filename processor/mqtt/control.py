"""What may be asked of a daemon over MQTT. Who may ask is for the broker's access control to say."""

from collections.abc import Callable, Collection
from typing import Protocol
from uuid import UUID

import structlog

SOURCE = "mqtt"
"""What claims and pauses from here are known by."""
_LONGEST = 200
"""Bytes of a payload: more is no command."""

log = structlog.get_logger("processor.mqtt")


class Asked(Protocol):
    """A message as aiomqtt gives it."""

    @property
    def topic(self) -> object:
        """Where it was sent to."""

    @property
    def payload(self) -> object:
        """What it says, as bytes."""

    @property
    def retain(self) -> bool:
        """Whether the broker kept it from before."""
        ...


class Worker(Protocol):
    """What claims jobs."""

    def wake(self, source: str) -> None:
        """Look for work now."""

    def pause(self, reason: str) -> None:
        """Claim nothing until every reason to pause is gone."""

    def resume(self, reason: str) -> None:
        """Take back a reason to pause."""


class Control:
    """Carries out commands, or says why not; ``stop`` has the daemon finish what runs, and end."""

    def __init__(
        self,
        prefix: str,
        worker_id: UUID,
        queues: Collection[str],
        worker: Worker,
        stop: Callable[[str], None],
    ) -> None:
        self._wake = f"{prefix}/control/wake"
        self._workers = (f"{prefix}/control/workers/all", f"{prefix}/control/workers/{worker_id}")
        self._queues = frozenset(queues)
        self._worker = worker
        self._commands: dict[str, Callable[[], None]] = {
            "pause": lambda: worker.pause(SOURCE),
            "resume": lambda: worker.resume(SOURCE),
            "drain": lambda: stop("a command over MQTT"),
        }

    @property
    def topics(self) -> list[str]:
        """Where to listen."""
        return [self._wake, *self._workers]

    def hear(self, asked: Asked) -> None:
        """Do what a message asks for."""
        topic, payload = str(asked.topic), asked.payload
        if not isinstance(payload, bytes) or len(payload) > _LONGEST:
            self._refuse(topic, f"the payload is no word of at most {_LONGEST} bytes")
            return
        word = payload.decode(errors="replace").strip()
        if asked.retain:
            if word:  # an empty one is how retained messages are taken back
                self._refuse(topic, "it is retained, and would be obeyed again at each connection")
            return
        if topic == self._wake:
            if word and word not in self._queues:
                return  # another worker's business
            self._worker.wake(SOURCE)
        elif (command := self._commands.get(word)) is not None:
            log.warning("mqtt.commanded", command=word, topic=topic)
            command()
        else:
            self._refuse(topic, f"{word[:50]!r} is not one of: {', '.join(self._commands)}")

    @staticmethod
    def _refuse(topic: str, reason: str) -> None:
        log.warning("mqtt.command_refused", topic=topic, reason=reason)
