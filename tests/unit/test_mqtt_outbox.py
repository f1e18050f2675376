"""Ends of jobs on disk: kept, bounded, inherited."""

import subprocess
import sys
from uuid import uuid4

from processor.mqtt.messages import Message
from processor.mqtt.outbox import Outbox


def end(number, size=10):
    trace = {"traceparent": "00-1-2-01"}
    return Message(f"p/jobs/q/{number}/status", b"x" * size, "status", True, 600, True, trace)


def outbox(directory, max_bytes=1_000_000):
    made = Outbox(directory, uuid4(), max_bytes=max_bytes)
    return made, made.open("p")


def test_what_is_put_is_loaded_in_order_until_it_is_done(tmp_path):
    made, _ = outbox(tmp_path)
    assert made.put([end(n) for n in range(5)])
    loaded = made.load(0, 3)
    assert [m.topic for m in loaded] == [end(n).topic for n in range(3)]
    assert all(m.terminal and m.retain and m.trace == end(0).trace and m.expiry == 600 for m in loaded)
    made.done([m.row for m in loaded])
    assert len(made.load(0, 10)) == made.depth.ends == 2
    made.close()


def test_a_file_that_is_empty_at_the_end_goes(tmp_path):
    made, _ = outbox(tmp_path)
    made.put([end(1)])
    made.done([made.load(0, 1)[0].row])
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_outbox_takes_nothing_more_and_goes_on_when_there_is_room(tmp_path):
    made, _ = outbox(tmp_path, max_bytes=200_000)
    count = 0
    while made.put([end(count, 10_000)]):
        count += 1
    assert 5 < count < 20
    made.done([m.row for m in made.load(0, 5)])
    assert made.put([end(count, 10_000)])
    assert made.depth.bytes <= 200_000
    made.close()


def test_the_outbox_of_the_dead_is_inherited_and_that_of_the_living_is_not(tmp_path):
    killed = (
        "import os, sys; from pathlib import Path\n"
        "from tests.unit.test_mqtt_outbox import end, outbox\n"
        "made, _ = outbox(Path(sys.argv[1])); made.put([end(n) for n in range(3)])\n"
        "made.clear_later(['p/gone'], 1.0)\n"
        "if len(sys.argv) > 2:\n print('there', flush=True); sys.stdin.read()\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", killed, tmp_path], check=False)
    living = subprocess.Popen(
        [sys.executable, "-c", killed, tmp_path, "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with living:
        assert living.stdout.readline() == b"there\n"  # and has inherited the first
        made, adopted = outbox(tmp_path)
        assert adopted == 0
        living.communicate()
    heir, adopted = outbox(tmp_path)
    assert adopted == 6
    assert heir.due(2.0, 10) == ["p/gone"]
    heir.cleared(["p/gone"])
    assert heir.depth.clears == 0
    heir.close()
    made.close()


def test_an_outbox_of_another_prefix_is_left_alone(tmp_path):
    other = Outbox(tmp_path, uuid4(), max_bytes=1_000_000)
    other.open("other")
    other.put([Message("other/jobs/q/1/status", b"{}", "status", terminal=True)])
    other.close()
    made, adopted = outbox(tmp_path)
    assert adopted == 0
    assert len(list(tmp_path.glob("*.mqtt"))) == 2
    made.close()


def test_a_file_that_is_no_database_is_put_aside(tmp_path):
    (tmp_path / "old.mqtt").write_bytes(b"nonsense" * 1000)
    made, adopted = outbox(tmp_path)
    assert adopted == 0
    assert (tmp_path / "old.corrupt").exists()
    made.close()


def test_the_file_is_for_nobody_elses_eyes(tmp_path):
    made, _ = outbox(tmp_path)
    [path] = tmp_path.glob("*.mqtt")
    assert path.stat().st_mode & 0o077 == 0
    made.close()
