"""The frames of the Realtime websocket: Phoenix, serializer versions 1.0.0 and 2.0.0.

Version 1 frames are objects, version 2 frames are arrays ``[join_ref, ref, topic, event, payload]``. In
version 2 a broadcast may be binary: kind 3 from the client, kind 4 to it, each with the lengths of its
strings in front, then the strings, then the payload as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CLIENT_BROADCAST = 3
SERVER_BROADCAST = 4
JSON_ENCODING = 1
LONGEST_STRING = 255


class WireError(ValueError):
    """A frame that is not of the protocol; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A message of a user: its event, its payload as bytes, and whether these are JSON."""

    event: str
    payload: bytes
    is_json: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """One message from a client. ``payload`` is a mapping, or a `Broadcast` if the frame was binary."""

    topic: str
    event: str
    payload: dict[str, Any] | Broadcast
    ref: str | None = None
    join_ref: str | None = None


dumps: Callable[[Any], str] = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
"""Write a value as compact JSON; ``json.dumps`` would make an encoder each time, a dozen of them a change."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Reads and writes the frames of one version, 1 or 2."""

    version: int

    @classmethod
    def of(cls, vsn: str | None) -> Wire:
        """Choose by the ``vsn`` parameter of the URL; without one it is version 1.

        Raises:
            WireError: no such version.

        """
        if vsn is None or vsn.startswith("1."):
            return cls(1)
        if vsn.startswith("2."):
            return cls(2)
        raise WireError(f"unknown vsn {vsn!r}: use 1.0.0 or 2.0.0")

    def read(self, data: str | bytes) -> Frame:
        """Decode one frame.

        Raises:
            WireError: it is not a frame of this version.

        """
        if isinstance(data, bytes):
            return self._read_binary(data)
        try:
            message = json.loads(data)
        except ValueError as error:
            raise WireError(f"a text frame must be JSON: {error}") from error
        if self.version == 1:
            if not isinstance(message, dict):
                raise WireError("a version 1 frame must be an object")
            parts = [message.get(name) for name in ("join_ref", "ref", "topic", "event", "payload")]
        else:
            if not isinstance(message, list) or len(message) < 5:
                raise WireError("a version 2 frame must be an array of five elements")
            parts = message[:5]
        join_ref, ref, topic, event, payload = parts
        if not isinstance(topic, str) or not isinstance(event, str):
            raise WireError("topic and event must be strings")
        return Frame(
            topic, event, payload if isinstance(payload, dict) else {}, _reference(ref), _reference(join_ref)
        )

    def write(
        self, topic: str, event: str, payload: str, *, ref: str | None = None, join_ref: str | None = None
    ) -> str:
        """Encode one text frame around ``payload``, which already is JSON text."""
        if self.version == 1:
            return f'{{"topic":{dumps(topic)},"event":{dumps(event)},"payload":{payload},"ref":{dumps(ref)}}}'
        return f"[{dumps(join_ref)},{dumps(ref)},{dumps(topic)},{dumps(event)},{payload}]"

    def write_broadcast(self, topic: str, broadcast: Broadcast) -> str | bytes | None:
        """Encode a broadcast, or return None for a binary payload that version 1 cannot carry."""
        if self.version == 1:
            if not broadcast.is_json:
                return None
            text = broadcast.payload.decode()
            return self.write(
                topic,
                "broadcast",
                f'{{"event":{dumps(broadcast.event)},"payload":{text},"type":"broadcast"}}',
            )
        names = [topic.encode(), broadcast.event.encode()]
        if any(len(name) > LONGEST_STRING for name in names):
            raise WireError(f"topic and event of a broadcast may have {LONGEST_STRING} bytes each")
        head = bytes([SERVER_BROADCAST, len(names[0]), len(names[1]), 0, broadcast.is_json])
        return head + names[0] + names[1] + broadcast.payload

    def _read_binary(self, data: bytes) -> Frame:
        if self.version == 1:
            raise WireError("version 1 has no binary frames: use vsn=2.0.0")
        if len(data) < 7 or data[0] != CLIENT_BROADCAST:
            raise WireError("the only binary frame from a client is the broadcast, kind 3")
        lengths, encoding, at = data[1:6], data[6], 7
        if len(data) < at + sum(lengths):
            raise WireError("a binary frame is shorter than its lengths say")
        strings = []
        for length in lengths:
            try:
                strings.append(data[at : at + length].decode())
            except UnicodeDecodeError as error:
                raise WireError("the strings of a binary frame must be UTF-8") from error
            at += length
        join_ref, ref, topic, event, _metadata = strings
        payload = data[at:]
        if encoding == JSON_ENCODING:
            try:
                json.loads(payload)
            except ValueError as error:
                raise WireError(f"the payload of a JSON broadcast must be JSON: {error}") from error
        broadcast = Broadcast(event, payload, encoding == JSON_ENCODING)
        return Frame(topic, "broadcast", broadcast, ref or None, join_ref or None)


def _reference(value: Any) -> str | None:
    return None if value is None else str(value)
