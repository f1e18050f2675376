"""Frames of both versions of the Realtime protocol."""

import json

import pytest

from processor.local.realtime.wire import Broadcast, Frame, Wire, WireError

V1, V2 = Wire(1), Wire(2)


def pushed(join_ref: str, ref: str, topic: str, event: str, payload: bytes, *, encoding: int = 1) -> bytes:
    """Build the binary frame that supabase-js sends."""
    strings = [part.encode() for part in (join_ref, ref, topic, event, "")]
    return bytes([3, *map(len, strings), encoding]) + b"".join(strings) + payload


@pytest.mark.parametrize(("vsn", "version"), [(None, 1), ("1.0.0", 1), ("2.0.0", 2)])
def test_the_version_follows_from_vsn_and_is_1_without_it(vsn, version):
    assert Wire.of(vsn).version == version


def test_an_unknown_version_is_refused():
    with pytest.raises(WireError, match=r"3\.0\.0"):
        Wire.of("3.0.0")


def test_version_1_frames_are_objects():
    text = '{"topic":"realtime:a","event":"phx_join","payload":{"config":{}},"ref":"1","join_ref":"1"}'
    assert V1.read(text) == Frame("realtime:a", "phx_join", {"config": {}}, "1", "1")
    assert json.loads(V1.write("t", "e", '{"a":1}', ref="2", join_ref="1")) == {
        "topic": "t",
        "event": "e",
        "payload": {"a": 1},
        "ref": "2",
    }


def test_version_2_frames_are_arrays():
    frame = V2.read('["1","2","realtime:a","heartbeat",{}]')
    assert frame == Frame("realtime:a", "heartbeat", {}, "2", "1")
    assert json.loads(V2.write("t", "e", '{"a":1}', join_ref="1")) == ["1", None, "t", "e", {"a": 1}]


def test_a_number_as_reference_is_taken_as_text():
    assert V1.read('{"topic":"t","event":"e","payload":null,"ref":7}') == Frame("t", "e", {}, "7", None)


def test_a_binary_broadcast_keeps_its_payload_byte_by_byte():
    frame = V2.read(pushed("1", "2", "realtime:a", "shout", b"\x00\xff", encoding=0))
    assert frame == Frame("realtime:a", "broadcast", Broadcast("shout", b"\x00\xff", is_json=False), "2", "1")


def test_a_broadcast_goes_out_in_kind_4():
    out = V2.write_broadcast("realtime:a", Broadcast("shout", b'{"a":1}', is_json=True))
    assert out == bytes([4, 10, 5, 0, 1]) + b"realtime:a" + b"shout" + b'{"a":1}'


def test_version_1_hears_a_json_broadcast_as_text_and_a_binary_one_not_at_all():
    text = V1.write_broadcast("t", Broadcast("shout", b'{"a":1}', is_json=True))
    assert isinstance(text, str)
    assert json.loads(text)["payload"] == {"event": "shout", "payload": {"a": 1}, "type": "broadcast"}
    assert V1.write_broadcast("t", Broadcast("shout", b"\x00", is_json=False)) is None


@pytest.mark.parametrize(
    ("wire", "data"),
    [
        (V1, "no json"),
        (V1, "[]"),
        (V1, '{"topic":1,"event":"e"}'),
        (V1, b"\x03"),
        (V2, "{}"),
        (V2, '["1","2","t","e"]'),
        (V2, b""),
        (V2, bytes([9]) + bytes(9)),
        (V2, bytes([3, 0, 0, 200, 0, 0, 1])),
        (V2, pushed("1", "2", "t", "e", b"no json")),
        (V2, bytes([3, 0, 0, 1, 0, 0, 0]) + b"\xff"),
    ],
)
def test_what_is_no_frame_is_refused(wire, data):
    with pytest.raises(WireError):
        wire.read(data)


def test_a_name_too_long_for_a_binary_frame_is_refused():
    with pytest.raises(WireError, match="255"):
        V2.write_broadcast("t" * 256, Broadcast("e", b"{}", is_json=True))
