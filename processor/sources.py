"""Where settings are looked for, in this order: command line, variables, files of secrets, config file."""

import difflib
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from processor.errors import ConfigError, did_you_mean

CONFIG_VARIABLE = "PROCESSOR_CONFIG"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
_PREFIX = "PROCESSOR_"
_FILE = "_FILE"
_WINDOWS = frozenset(f"PROCESSOR_{name}" for name in ("ARCHITECTURE", "IDENTIFIER", "LEVEL", "REVISION"))
"""What Windows tells every process about its CPU."""

Kind = Literal["command line", "variable", "file", "credential", "config file", "default"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from."""

    kind: Kind
    name: str = ""
    """The option, the variable, or the path; of a config file, ``path:key``."""

    def __str__(self) -> str:
        return self.kind if self.kind == "default" else f"{self.kind} {self.name}"


DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Found:
    """A value as it was written, and where."""

    field: str
    value: Any
    origin: Origin
    read: Callable[[], str] | None = None
    """Reads it again, if it is the content of a file."""


@dataclass(frozen=True, slots=True)
class Known:
    """What may be set: each field's variables, the preferred one first, and which fields are secrets."""

    variables: Mapping[str, tuple[str, ...]]
    secrets: tuple[str, ...]

    def of(self, name: str) -> str | None:
        """Return the field that a variable sets."""
        return next((field for field, names in self.variables.items() if name in names), None)


@dataclass(slots=True)
class Gathered:
    """What was found: of each field what counts, and what is to be said about the rest."""

    found: dict[str, Found] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """What nobody can have meant: names that are unknown, files that cannot be read."""
    warnings: list[str] = field(default_factory=list)


def gather(
    known: Known, given: Mapping[str, Any], environment: Mapping[str, str], config: Path | None
) -> Gathered:
    """Look everywhere; the first place that has a value wins.

    Args:
        known: what may be set.
        given: values of the command line, by field.
        environment: the variables; names in any case, an empty one counts as not set.
        config: the TOML file, if the command line names one; else ``PROCESSOR_CONFIG`` may.

    """
    gathered = Gathered()
    named = {name.upper(): value for name, value in environment.items() if value.strip()}
    if config is None and CONFIG_VARIABLE in named:
        config = Path(named[CONFIG_VARIABLE])
    gathered.problems += _unknown_variables(known, named)
    for found in chain(
        (Found(name, value, Origin("command line", _option(name))) for name, value in given.items()),
        _variables(known, named),
        _secret_files(known, named, gathered),
        _credentials(known, named, gathered),
        _config_file(known, config, gathered),
    ):
        first = gathered.found.setdefault(found.field, found)
        if first is not found and found.field in known.secrets and not _same(first, found):
            gathered.warnings.append(
                f"{known.variables[found.field][0]} is given twice: {first.origin} counts, "
                f"{found.origin} does not. Remove one of them."
            )
    return gathered


def near_misses(known: Known, environment: Iterable[str], wanted: str) -> str:
    """Say which variable of the environment may be ``wanted``, misspelt; it is not shown."""
    mine = {variable for names in known.variables.values() for variable in names}
    others = [name for name in environment if name.upper().startswith("SUPABASE") and name not in mine]
    near = difflib.get_close_matches(wanted, others, n=1)
    return f" ({near[0]} is set, but that is not its name.)" if near else ""


# -- the places ------------------------------------------------------------------------------------


def _variables(known: Known, named: Mapping[str, str]) -> Iterator[Found]:
    for name, variables in known.variables.items():
        for variable in variables:
            if variable in named:
                yield Found(name, named[variable], Origin("variable", variable))


def _secret_files(known: Known, named: Mapping[str, str], gathered: Gathered) -> Iterator[Found]:
    for name in known.secrets:
        for variable in known.variables[name]:
            if path := named.get(variable + _FILE):
                yield from _from_file(name, Path(path), "file", gathered, variable + _FILE)


def _credentials(known: Known, named: Mapping[str, str], gathered: Gathered) -> Iterator[Found]:
    """Look into systemd's directory, for the variable's name however it is written."""
    if CREDENTIALS_VARIABLE not in named:
        return
    directory = Path(named[CREDENTIALS_VARIABLE])
    try:
        files = sorted(directory.iterdir())
    except OSError as error:
        gathered.problems.append(f"{CREDENTIALS_VARIABLE}: cannot read {directory}: {error.strerror}")
        return
    for path in files:
        variable = path.name.upper().replace("-", "_").replace(".", "_")
        name = known.of(variable)
        if name in known.secrets and path.is_file():
            yield from _from_file(name, path, "credential", gathered, CREDENTIALS_VARIABLE)


def _config_file(known: Known, path: Path | None, gathered: Gathered) -> Iterator[Found]:
    if path is None:
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        gathered.problems.append(f"{CONFIG_VARIABLE}: cannot read {path}: {error.strerror}")
        return
    except ValueError as error:  # of TOML or of UTF-8; neither quotes a value
        gathered.problems.append(f"{path}: this is no TOML: {error}")
        return
    keys = {*known.variables, *(f"{name}_file" for name in known.secrets)}
    for key, value in content.items():
        if key in known.variables:
            if key in known.secrets:
                gathered.warnings += _open_to_others(path)
            yield Found(key, value, Origin("config file", f"{path}:{key}"))
        elif key in keys and isinstance(value, str):
            file = path.parent / Path(value).expanduser()
            yield from _from_file(key.removesuffix("_file"), file, "file", gathered, f"{path}: {key}")
        else:
            said = f"must be a path, not {value!r}" if key in keys else "there is no such setting."
            near = "" if key in keys else did_you_mean(known.of(key.upper()) or key, keys)
            gathered.problems.append(f"{path}: {key}: {said}{near}")


def _from_file(
    name: str, path: Path, kind: Literal["file", "credential"], gathered: Gathered, said_by: str
) -> Iterator[Found]:
    def read() -> str:
        try:
            text = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{said_by}: cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{said_by}: {path} is no text") from None
        if not text:
            raise ConfigError(f"{said_by}: {path} is empty")
        return text

    try:
        value = read()
    except ConfigError as error:
        gathered.problems.append(str(error))
        return
    gathered.warnings += _open_to_others(path)
    yield Found(name, value, Origin(kind, str(path)), read)


# -- what is odd -----------------------------------------------------------------------------------


def _unknown_variables(known: Known, named: Iterable[str]) -> Iterator[str]:
    mine = {variable for names in known.variables.values() for variable in names} | {CONFIG_VARIABLE}
    mine |= {variable + _FILE for secret in known.secrets for variable in known.variables[secret]}
    for name in sorted(named):
        if name.startswith(_PREFIX) and name not in mine | _WINDOWS:
            yield f"{name}: there is no such setting.{did_you_mean(name, mine, prefix=_PREFIX)}"


def _open_to_others(path: Path) -> Iterator[str]:
    """Warn if anybody on this machine can read a file with a secret."""
    path = path.resolve()
    try:
        mode = path.stat().st_mode
        reachable = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    except OSError:
        return
    if mode & stat.S_IROTH and reachable:
        yield f"{path} has a secret in it, and everybody on this machine can read it. Run: chmod o-r {path}"


def _same(one: Found, other: Found) -> bool:
    """Whether it makes no difference which counts: some hosts set a key under several names."""
    return one.origin.kind == other.origin.kind == "variable" and one.value == other.value


def _option(name: str) -> str:
    return "--" + {"queues": "queue"}.get(name, name).replace("_", "-")
