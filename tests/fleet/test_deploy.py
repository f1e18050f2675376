"""A version goes to many machines: canaries first, each judged, and back where it does not work."""

import signal

import pytest

from tests.fleet.machines import Fleet


@pytest.fixture
def three(fleet: Fleet) -> Fleet:
    for name in ("one", "two", "three"):
        fleet.add(name)
    return fleet


def test_every_machine_gets_the_version_and_says_so(three: Fleet) -> None:
    done = three.deploy("--wheel", three.wheel("2"))
    assert done.code == 0, done.err
    assert three.versions() == {"one": "2", "two": "2", "three": "2"}
    assert done.states() == dict.fromkeys(three.machines, "upgraded")
    assert done.hosts["one"]["said"] == "installed 2"
    assert done.hosts["one"]["before"] == "healthy"


def test_the_canary_is_judged_before_any_other_machine_is_touched(fleet: Fleet) -> None:
    fleet.add("one")
    fleet.add("two")
    fleet.add("bird", canary=True)
    fleet.settings["canary_seconds"] = 1
    done = fleet.deploy("--wheel", fleet.wheel("2"))
    assert done.code == 0, done.err
    assert [host["canary"] for host in done.hosts.values()] == [False, False, True]
    [ended] = fleet.machines["bird"].times("ended")
    for name in ("one", "two"):
        [begun] = fleet.machines[name].times("begun")
        assert begun >= ended + fleet.settings["canary_seconds"]


def test_a_canary_that_is_not_ready_goes_back_and_the_others_never_hear_of_it(three: Fleet) -> None:
    done = three.deploy("--wheel", three.wheel("2", "sulks"))
    assert done.code == 1
    assert done.states() == {"one": "failed, went back", "two": "untouched", "three": "untouched"}
    assert "no heartbeat gets through" in done.hosts["one"]["said"]
    assert three.versions() == {"one": "1", "two": "1", "three": "1"}
    assert not three.machines["two"].times("begun")


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("dies", "installed 2, which does not come up"),
        ("restarts", "healthy at first, then restarted"),
        ("starts", "processor.service is activating (start)"),
    ],
)
def test_what_does_not_run_does_not_stay(fleet: Fleet, behaviour: str, reason: str) -> None:
    fleet.add("one")
    done = fleet.deploy("--wheel", fleet.wheel("2", behaviour))
    assert done.code == 1
    assert done.states() == {"one": "failed, went back"}
    assert reason in done.hosts["one"]["said"]
    assert fleet.versions() == {"one": "1"}


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("refuses", "nothing has changed"), ("hangs", "took too long")]
)
def test_what_was_never_installed_is_not_gone_back_from(fleet: Fleet, behaviour: str, reason: str) -> None:
    machine = fleet.add("one")
    (machine.place / "previous").write_text("0\nworks\n")
    fleet.settings["install_seconds"] = 3 if behaviour == "hangs" else 60
    done = fleet.deploy("--wheel", fleet.wheel("2", behaviour))
    assert done.code == 1
    assert done.states() == {"one": "failed, unchanged"}
    assert reason in done.hosts["one"]["said"]
    assert fleet.versions() == {"one": "1"}
    assert len(machine.times("begun")) == 1


def test_a_failure_after_the_canary_leaves_what_works_and_begins_with_no_further_machine(
    three: Fleet,
) -> None:
    three.settings["parallel"] = 1
    three.tables["two"]["ready"] = ["http://127.0.0.1:9/readyz"]  # nothing answers there
    done = three.deploy("--wheel", three.wheel("2"))
    assert done.code == 1
    assert done.states() == {"one": "upgraded", "two": "BROKEN", "three": "untouched"}
    assert "going back failed too" in done.hosts["two"]["said"]
    assert three.versions() == {"one": "2", "two": "1", "three": "1"}


def test_all_or_nothing_takes_the_working_machines_back_too(three: Fleet) -> None:
    three.tables["two"]["ready"] = ["http://127.0.0.1:9/readyz"]
    done = three.deploy("--wheel", three.wheel("2"), "--all-or-nothing")
    assert done.code == 1
    assert done.states()["one"] == "went back"
    assert three.versions() == {"one": "1", "two": "1", "three": "1"}


def test_the_whole_fleet_can_be_taken_back(three: Fleet) -> None:
    assert three.deploy("--wheel", three.wheel("2")).code == 0
    done = three.deploy("--rollback")
    assert done.code == 0, done.err
    assert done.states() == dict.fromkeys(three.machines, "went back")
    assert three.versions() == {"one": "1", "two": "1", "three": "1"}


def test_a_first_installation_that_fails_has_nothing_to_go_back_to(fleet: Fleet) -> None:
    fleet.add("one", version=None)
    done = fleet.deploy("--wheel", fleet.wheel("1", "sulks"))
    assert done.code == 1
    assert done.hosts["one"]["before"].startswith("processor.service is not installed")
    assert done.states() == {"one": "BROKEN"}
    assert "there is no version before this one" in done.hosts["one"]["said"]


def test_a_machine_with_another_host_key_is_refused_and_nothing_is_begun_anywhere(three: Fleet) -> None:
    three.inventory()
    known = three.directory / "known_hosts"
    own = three.machines["three"].known
    other = f"{own.split()[0]} {' '.join(three.machines['one'].known.split()[1:])}\n"
    known.write_text(known.read_text().replace(own, other))
    done = three.deploy("--wheel", three.wheel("2"))
    assert done.code == 1
    assert done.states() == {"one": "untouched", "two": "untouched", "three": "refused"}
    assert "verification failed" in done.hosts["three"]["said"]
    assert three.versions() == {"one": "1", "two": "1", "three": "1"}


def test_a_machine_that_is_in_no_known_hosts_is_refused(fleet: Fleet) -> None:
    fleet.add("one")
    (fleet.directory / "known_hosts").write_text("# nobody\n")
    done = fleet.deploy("--wheel", fleet.wheel("2"))
    assert done.states() == {"one": "refused"}
    assert not (fleet.directory / ".ssh").exists()


def test_a_machine_that_is_off_keeps_the_others_as_they_are(three: Fleet) -> None:
    three.machines["three"].stop()
    done = three.deploy("--wheel", three.wheel("2"))
    assert done.code == 1
    assert done.states() == {"one": "untouched", "two": "untouched", "three": "refused"}
    assert "Connection refused" in done.hosts["three"]["said"]
    left_out = three.deploy("--wheel", three.wheel("2"), "--only", "one", "--only", "two")
    assert left_out.code == 0, left_out.err
    assert three.versions() == {"one": "2", "two": "2", "three": "1"}


def test_a_user_without_the_right_to_install_is_noticed_before_anything_is_done(three: Fleet) -> None:
    (three.machines["two"].place / "no_sudo").touch()
    done = three.deploy("--wheel", three.wheel("2"))
    assert done.states() == {"one": "untouched", "two": "refused", "three": "untouched"}
    assert "a password is required" in done.hosts["two"]["said"]


def test_a_dry_run_looks_at_every_machine_and_changes_none(three: Fleet) -> None:
    done = three.deploy("--wheel", three.wheel("2"), "--dry-run")
    assert done.code == 0, done.err
    assert done.states() == dict.fromkeys(three.machines, "untouched")
    assert three.versions() == {"one": "1", "two": "1", "three": "1"}
    three.machines["two"].stop()
    assert three.deploy("--wheel", three.wheel("2"), "--dry-run").code == 1


def test_instances_are_named_to_the_installer_and_judged_one_by_one(fleet: Fleet) -> None:
    machine = fleet.add("one", instances=["a", "b"])
    done = fleet.deploy("--wheel", fleet.wheel("2"))
    assert done.code == 0, done.err
    assert (machine.place / "instances").read_text() == "a b\n"
    assert done.hosts["one"]["units"] == ["processor@a.service", "processor@b.service"]
    failed = fleet.deploy("--wheel", fleet.wheel("3", "starts"))
    assert "processor@a.service is activating (start); processor@b" in failed.hosts["one"]["said"]
    assert (machine.place / "instances").read_text() == "a b\n"
    assert failed.states() == {"one": "failed, went back"}


def test_the_first_ctrl_c_ends_with_the_machine_that_is_under_way(three: Fleet) -> None:
    three.settings.update(parallel=1, canary_seconds=5)
    process = three.begin("--json", "--wheel", three.wheel("2"))
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "one: is upgraded" in line:
            break
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert '"state": "upgraded"' in out
    assert three.versions() == {"one": "2", "two": "1", "three": "1"}


def test_two_deployments_with_one_inventory_do_not_meet(fleet: Fleet) -> None:
    fleet.add("one")
    fleet.settings["canary_seconds"] = 20
    first = fleet.begin("--wheel", fleet.wheel("2"))
    assert first.stderr is not None
    assert "reached" in first.stderr.readline()
    second = fleet.begin("--wheel", fleet.wheel("3"))
    _, err = second.communicate(timeout=30)
    assert second.returncode == 2
    assert "is under way" in err
    first.send_signal(signal.SIGINT)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)


def test_nothing_that_was_brought_stays_on_a_machine(fleet: Fleet, tmp_path) -> None:
    machine = fleet.add("one")
    fleet.deploy("--wheel", fleet.wheel("2"))
    log = (machine.place / "places").read_text().split()
    assert log
    assert not any((tmp_path / place).exists() for place in log)


def test_the_table_has_a_line_for_each_machine(three: Fleet) -> None:
    process = three.begin("--wheel", three.wheel("2"))
    out, _ = process.communicate(timeout=60)
    lines = out.splitlines()
    assert lines[0].split() == ["host", "wave", "state", "took", "units", "said"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["one", "canary", "upgraded"],
        ["two", "rest", "upgraded"],
        ["three", "rest", "upgraded"],
    ]
    assert lines[-1] == "3 upgraded"


def test_what_an_operator_has_stopped_is_left_so_and_not_waited_for(fleet: Fleet) -> None:
    machine = fleet.add("one", instances=["a", "b"], ready=[])
    fleet.tables["one"]["ready"] = [
        machine.ready_url,
        "http://127.0.0.1:9/readyz",
    ]  # that of b: nobody listens
    (machine.place / "stopped").write_text("processor@b.service\n")
    done = fleet.deploy("--wheel", fleet.wheel("2"))
    assert done.states() == {"one": "upgraded"}, done.err
    assert "processor@b.service is inactive (dead)" in done.hosts["one"]["before"]
    (machine.place / "stopped").unlink()
    # nothing is excused where everything ran before
    failed = fleet.deploy("--wheel", fleet.wheel("3", "sulks"))
    assert failed.states() == {"one": "BROKEN"}
