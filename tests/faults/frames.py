"""The frames of a websocket, as far as a proxy in between must know them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TEXT = 1
CONTROL = 8
"""Opcodes from here on are pings, pongs and closes."""
LONG, LONGER = 126, 127


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: as it was on the wire, and what it holds."""

    raw: bytes
    opcode: int
    payload: bytes

    def message(self) -> dict[str, Any]:
        """Read it as a message of Phoenix; one that is none is empty."""
        try:
            message = json.loads(self.payload) if self.opcode == TEXT else {}
        except ValueError:
            return {}
        return message if isinstance(message, dict) else {}


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete with this."""
        self._rest += data
        while (frame := self._next()) is not None:
            self._rest = self._rest[len(frame.raw) :]
            yield frame

    def _next(self) -> Frame | None:
        rest = self._rest
        if len(rest) < 2:
            return None
        masked, length, at = rest[1] & 0x80, rest[1] & 0x7F, 2
        if length in {LONG, LONGER}:
            size = 2 if length == LONG else 8
            if len(rest) < at + size:
                return None
            length, at = int.from_bytes(rest[at : at + size]), at + size
        mask, at = (rest[at : at + 4], at + 4) if masked else (b"", at)
        if len(rest) < at + length:
            return None
        payload = rest[at : at + length]
        if mask:
            cycle = (mask * (length // 4 + 1))[:length]
            payload = (int.from_bytes(payload) ^ int.from_bytes(cycle)).to_bytes(length)
        return Frame(rest[: at + length], rest[0] & 0x0F, payload)


def text_frame(message: dict[str, Any]) -> bytes:
    """Write a message as a server does."""
    payload = json.dumps(message).encode()
    length = len(payload)
    if length < LONG:
        size = bytes([length])
    elif length < 1 << 16:
        size = bytes([LONG]) + length.to_bytes(2)
    else:
        size = bytes([LONGER]) + length.to_bytes(8)
    return bytes([0x80 | TEXT]) + size + payload
