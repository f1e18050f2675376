"""The frames that the fault proxy reads and writes are those of the websocket library."""

import json

import pytest
from websockets.frames import Frame as LibraryFrame
from websockets.frames import Opcode

from tests.faults.frames import TEXT, FrameReader, text_frame


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
@pytest.mark.parametrize("mask", [True, False])
def test_a_frame_is_read_whole_however_it_arrives(length: int, *, mask: bool):
    payload = bytes(number % 251 for number in range(length))
    raw = LibraryFrame(Opcode.BINARY, payload).serialize(mask=mask)
    ping = LibraryFrame(Opcode.PING, b"!").serialize(mask=mask)
    for size in {1, 7, len(raw)} if length < 200 else {1000, len(raw)}:
        reader = FrameReader()
        stream = raw + ping
        frames = [
            frame
            for start in range(0, len(stream), size)
            for frame in reader.feed(stream[start : start + size])
        ]
        assert [(frame.opcode, frame.payload) for frame in frames] == [(2, payload), (9, b"!")]
        assert b"".join(frame.raw for frame in frames) == stream


@pytest.mark.parametrize("length", [1, 200, 70_000])
def test_a_message_is_written_as_the_library_writes_it(length: int):
    message = {"topic": "x" * length, "event": "system"}
    raw = text_frame(message)
    assert raw == LibraryFrame(Opcode.TEXT, json.dumps(message).encode()).serialize(mask=False)
    [frame] = FrameReader().feed(raw)
    assert (frame.opcode, frame.message()) == (TEXT, message)


def test_what_is_no_message_is_empty():
    [frame] = FrameReader().feed(LibraryFrame(Opcode.TEXT, b"[1, 2]").serialize(mask=False))
    assert frame.message() == {}
