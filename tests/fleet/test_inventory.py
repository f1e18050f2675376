"""An inventory is read once, and what cannot be meant is said before any machine is asked."""

import subprocess
from pathlib import Path

import pytest

from deploy.fleet import inventory

ROOT = Path(__file__).parents[2]
KNOWN = 'known_hosts = "known_hosts"\n'


@pytest.fixture
def write(tmp_path: Path):
    (tmp_path / "known_hosts").write_text("")

    def to_file(text: str) -> Path:
        path = tmp_path / "inventory.toml"
        path.write_text(text)
        return path

    return to_file


def test_the_example_is_an_inventory(write) -> None:
    read = inventory.load(write((ROOT / "deploy" / "inventory.example.toml").read_text()))
    assert [host.name for host in read.hosts] == ["worker-1", "worker-2", "worker-3"]
    assert [host.name for host in read.canaries] == ["worker-1"]
    first, _, third = read.hosts
    assert (first.user, first.sudo, first.units) == ("deploy", True, ("processor.service",))
    assert (third.port, third.units) == (2222, ("processor@a.service", "processor@b.service"))
    assert len(third.ready) == 2


def test_a_machine_is_found_by_its_name_and_root_needs_no_sudo(write) -> None:
    read = inventory.load(write(KNOWN + 'user = "root"\n[hosts.alpha]\n[hosts.beta]\nuser = "me"\n'))
    assert [(host.address, host.sudo) for host in read.hosts] == [("alpha", False), ("beta", True)]
    assert read.canaries == read.hosts[:1]


def test_only_some_machines_can_be_meant(write) -> None:
    path = write(KNOWN + "[hosts.a]\n[hosts.b]\n[hosts.c]\n")
    assert [host.name for host in inventory.load(path, ("c", "a")).hosts] == ["a", "c"]
    with pytest.raises(inventory.InventoryError, match="it has no host d"):
        inventory.load(path, ("d",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it names no machine"),
        ("[hosts.a]\n", 'known_hosts = "…" is missing'),
        ('known_hosts = "nowhere"\n[hosts.a]\n', "there is no file"),
        (KNOWN + "paralell = 3\n[hosts.a]\n", "did you mean parallel"),
        (KNOWN + "parallel = 0\n[hosts.a]\n", "parallel = 0 must be a whole number, at least 1"),
        (KNOWN + "parallel = true\n[hosts.a]\n", "parallel = True must be"),
        (KNOWN + "[hosts.a]\nprot = 22\n", "did you mean port"),
        (KNOWN + "[hosts.a]\nport = 99999\n", "port = 99999 must be a number from 1 to 65535"),
        (KNOWN + '[hosts.a]\naddress = "-oProxyCommand=x"\n', "without spaces or an option's dash"),
        (KNOWN + '[hosts.a]\nuser = "me you"\n', "user = 'me you'"),
        (KNOWN + '[hosts.a]\ninstances = "a"\n', "must be a list of texts"),
        (KNOWN + '[hosts.a]\ninstances = ["a b"]\n', "'a b' cannot be an instance"),
        (KNOWN + '[hosts.a]\nready = ["8080"]\n', "must look like http://127.0.0.1:8080/readyz"),
        (KNOWN + '[hosts.a]\nsudo = "yes"\n', "sudo = 'yes' must be true or false"),
        (KNOWN + "[hosts.a\n", "inventory.toml: "),
    ],
)
def test_what_cannot_be_meant_is_said_with_what_to_write_instead(write, text: str, says: str) -> None:
    with pytest.raises(inventory.InventoryError) as error:
        inventory.load(write(text))
    assert says in str(error.value)


def test_a_wheel_that_is_none_and_an_inventory_that_is_none_end_with_2(write, tmp_path: Path) -> None:
    script = ROOT / "scripts" / "deploy"
    path = write(KNOWN + "[hosts.a]\n")
    wheel = subprocess.run([script, path, "--wheel", path], capture_output=True, text=True, check=False)
    assert (wheel.returncode, "is no wheel" in wheel.stderr) == (2, True)
    missing = subprocess.run(
        [script, tmp_path / "no", "--rollback"], capture_output=True, text=True, check=False
    )
    assert (missing.returncode, missing.stderr.startswith("deploy: ")) == (2, True)
