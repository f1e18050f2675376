"""The inventory: a TOML file with the machines, and what there is to know about reaching them."""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")


class InventoryError(Exception):
    """The inventory cannot be used; the message says which line of it, and what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One machine."""

    name: str
    """What reports call it."""
    address: str
    """Where ssh finds it; by default its name, which may be an alias of ``~/.ssh/config``."""
    user: str | None = None
    """Whom to be there; None: what ssh makes of it."""
    port: int | None = None
    """Port of its sshd; None: what ssh makes of it."""
    identity_file: Path | None = None
    """The private key; None: the agent's, or ssh's own."""
    sudo: bool = True
    """Whether the installation needs ``sudo -n`` there; not for root."""
    instances: tuple[str, ...] = ()
    """Instances of ``processor@.service``; empty: ``processor.service``."""
    ready: tuple[str, ...] = ()
    """Addresses that must answer 200 there, such as ``http://127.0.0.1:8080/readyz``."""
    canary: bool = False
    """Whether it goes before the others."""

    @property
    def units(self) -> tuple[str, ...]:
        """What systemd calls the daemons."""
        return tuple(f"processor@{name}.service" for name in self.instances) or ("processor.service",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The machines, in the order of the file, and how to go about them."""

    hosts: tuple[Host, ...]
    known_hosts: Path
    """Their host keys: a machine that is not in it, or has another key, is refused."""
    parallel: int = 5
    """Machines at the same time, after the canaries."""
    connect_seconds: int = 10
    """Until a machine that does not answer is given up."""
    install_seconds: int = 900
    """For an installation, which includes the grace of running jobs."""
    health_seconds: int = 120
    """Until the daemons must be healthy after it."""
    settle_seconds: int = 10
    """For how long they must stay so."""
    canary_seconds: int = 60
    """For how long those of a canary must, before any other machine is touched."""

    @property
    def canaries(self) -> tuple[Host, ...]:
        """The machines that go first: those that say so, or else the first one."""
        return tuple(host for host in self.hosts if host.canary) or self.hosts[:1]


_OF_HOSTS = {field.name for field in fields(Host)} - {"name"}
_OF_ALL = {field.name for field in fields(Inventory)} - {"hosts", "known_hosts"}
_DEFAULTS = _OF_HOSTS - {"address", "canary"}


def load(path: Path, only: tuple[str, ...] = ()) -> Inventory:
    """Read an inventory; ``only`` these hosts of it, if any are named.

    Raises:
        InventoryError: it cannot be read, or something in it cannot be meant.

    """
    try:
        data = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InventoryError(f"{path}: {error}") from error
    tables = data.pop("hosts", None)
    if not isinstance(tables, dict) or not tables:
        raise InventoryError(f"{path}: it names no machine; write a table [hosts.NAME] for each")
    _known(data, _OF_ALL | _DEFAULTS | {"known_hosts"}, str(path))
    defaults = {key: data.pop(key) for key in _DEFAULTS & data.keys()}
    hosts = tuple(_host(name, table, defaults, path) for name, table in tables.items())
    missing = set(only) - {host.name for host in hosts}
    if missing:
        raise InventoryError(f"{path}: it has no host {', '.join(sorted(missing))}")
    known = data.pop("known_hosts", None)
    if not isinstance(known, str):
        raise InventoryError(
            f'{path}: known_hosts = "…" is missing, the file with the keys of the machines; '
            "fill it from a source you trust, never from ssh-keyscan over the network it is to protect"
        )
    for key, value in data.items():
        least = 0 if key in {"settle_seconds", "canary_seconds"} else 1
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InventoryError(f"{path}: {key} = {value!r} must be a whole number, at least {least}")
    chosen = tuple(host for host in hosts if not only or host.name in only)
    return Inventory(hosts=chosen, known_hosts=_file(known, path, "known_hosts"), **data)


def _host(name: str, table: Any, defaults: dict[str, Any], path: Path) -> Host:
    where = f"{path}: [hosts.{name}]"
    if not isinstance(table, dict):
        raise InventoryError(f"{where} must be a table")
    _known(table, _OF_HOSTS, where)
    values: dict[str, Any] = {"address": name, **defaults, **table}
    for key, pattern in (("address", _ADDRESS), ("user", _WORD)):
        value = values.get(key)
        if value is not None and not (isinstance(value, str) and pattern.fullmatch(value)):
            raise InventoryError(
                f"{where}: {key} = {value!r} must be a name without spaces or an option's dash"
            )
    port = values.get("port")
    if port is not None and (not isinstance(port, int) or not 0 < port < 65536):
        raise InventoryError(f"{where}: port = {port!r} must be a number from 1 to 65535")
    for key in ("sudo", "canary"):
        if not isinstance(values.get(key, False), bool):
            raise InventoryError(f"{where}: {key} = {values[key]!r} must be true or false")
    for key in ("instances", "ready"):
        value = values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
            raise InventoryError(f"{where}: {key} = {value!r} must be a list of texts")
        values[key] = tuple(value)
    if "identity_file" in values:
        values["identity_file"] = _file(values["identity_file"], path, f"[hosts.{name}] identity_file")
    values.setdefault("sudo", values.get("user") != "root")
    host = Host(name=name, **values)
    for instance in host.instances:
        if not _WORD.fullmatch(instance):
            raise InventoryError(f"{where}: {instance!r} cannot be an instance: letters, digits, _ . - only")
    for url in host.ready:
        if urlsplit(url).scheme != "http" or not urlsplit(url).hostname:
            raise InventoryError(f"{where}: ready = {url!r} must look like http://127.0.0.1:8080/readyz")
    return host


def _known(table: dict[str, Any], names: set[str], where: str) -> None:
    for key in table.keys() - names:
        near = difflib.get_close_matches(key, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(names))}"
        raise InventoryError(f"{where}: nothing is called {key}; {hint}")


def _file(value: Any, path: Path, what: str) -> Path:
    found = path.parent / Path(str(value)).expanduser()
    if not found.is_file():
        raise InventoryError(f"{path}: {what}: there is no file {found}")
    return found.absolute()
