"""What can be seen without asking anybody: settings, keys, this machine."""

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from processor.config import Settings, claims_of, role_of, variables
from processor.doctor.finding import Finding, fail, ok, warn

_HOSTED = ".supabase.co"
_A_DAY = 86400.0
_FILES = 128
"""Open files of the daemon itself, generously: connections, logs, Python."""
_FREE_MB = 200
_SPOOL = "spool_dir"
WORKER_ROLES = ("service_role", "job_processor")


def settings(found: Settings) -> Iterator[Finding]:
    """Say what is odd about where the settings came from."""
    given = sum(found.origin(name).kind != "default" for name in Settings.model_fields)
    yield ok("settings", f"{given} given, the others have their defaults (see: processor config)")
    for warning in found.warnings:
        seen, _, mend = warning.partition(". ")
        yield warn("settings", seen, mend)


def address(found: Settings) -> Iterator[Finding]:
    """Say if keys would travel in the clear."""
    parts = urlsplit(found.url)
    if parts.scheme == "http" and not _is_near(parts.hostname or ""):
        mend = "Use https:// in SUPABASE_URL."
        yield warn("address", f"{found.url} is not encrypted: everybody on the way can read the key", mend)


def keys(found: Settings) -> Iterator[Finding]:
    """Say what the keys are, as far as they tell."""
    yield from _key(found, "key", WORKER_ROLES, "the project's secret (or service_role) key")
    if found.anon_key is not None:
        yield from _key(found, "anon_key", ("anon",), "the project's publishable (or anon) key")
    elif role_of(found.key.get_secret_value()) == "job_processor":
        yield warn(
            "key",
            "a token of job_processor without the publishable key beside it",
            "Set SUPABASE_ANON_KEY: a hosted project lets nobody in without one of its own keys.",
        )


def host(found: Settings) -> Iterator[Finding]:
    """Say what this machine lacks."""
    yield from _spool(getattr(found, _SPOOL, None))
    needed = _FILES + 2 * found.slots * found.item_concurrency
    allowed, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        seen = f"{allowed} files may be open; {found.slots} slots with a few connections each want {needed}"
        most = "more" if hard == resource.RLIM_INFINITY else f"up to {hard}"
        yield warn("files", seen, f"Run: ulimit -n {needed} ({most}), or set LimitNOFILE={needed} (systemd).")
    else:
        yield ok("files", f"{allowed} may be open, {needed} may be wanted")


def _key(found: Settings, name: str, roles: tuple[str, ...], wanted: str) -> Iterator[Finding]:
    secret = getattr(found, name).get_secret_value()
    variable = variables(name)[0]
    prefix = {"key": "sb_secret_", "anon_key": "sb_publishable_"}[name]
    if secret.startswith("sb_"):
        if secret.startswith(prefix):
            yield ok("key", f"{variable} is a key of the form {prefix}…")
        else:
            yield fail(
                "key", f"{variable} has the form {secret[:10]}…: it is not {wanted}", f"Take {wanted}."
            )
        return
    claims = claims_of(secret)
    role = claims.get("role")
    if not claims:
        yield warn("key", f"{variable} is neither a token nor of the form {prefix}…", f"Is it {wanted}?")
        return
    if role not in roles:
        yield fail(
            "key", f"{variable} is a token of role {role}, not {' or '.join(roles)}", f"Take {wanted}."
        )
        return
    troubles = [*_wrong_project(variable, claims, found.url), *_expiry(found, name, variable, claims)]
    yield from troubles or [ok("key", f"{variable} is a token of role {role}{_until(claims)}")]


def _wrong_project(variable: str, claims: dict[str, Any], url: str) -> Iterator[Finding]:
    """Compare the project that a hosted project's key names with the address."""
    hostname = urlsplit(url).hostname or ""
    ref = claims.get("ref")
    if hostname.endswith(_HOSTED) and isinstance(ref, str) and ref != hostname.removesuffix(_HOSTED):
        seen = f"{variable} belongs to project {ref}, but SUPABASE_URL is {hostname.removesuffix(_HOSTED)}"
        yield fail("key", seen, "Take address and key from the same project's API settings.")


def _expiry(found: Settings, name: str, variable: str, claims: dict[str, Any]) -> Iterator[Finding]:
    ends = claims.get("exp")
    if not isinstance(ends, int | float):
        return
    left = ends - time.time()
    if left <= 0:
        yield fail("key", f"{variable} expired {_duration(-left)} ago", "Have a new one issued.")
    elif left < _A_DAY and found.origin(name).kind not in {"file", "credential"}:
        mend = f"Give it in a file that is renewed: {variable}_FILE is read again."
        yield warn("key", f"{variable} expires in {_duration(left)}, and nothing can renew it", mend)


def _until(claims: dict[str, Any]) -> str:
    ends = claims.get("exp")
    return f", for another {_duration(ends - time.time())}" if isinstance(ends, int | float) else ""


def _spool(directory: Path | None) -> Iterator[Finding]:
    if directory is None:
        return
    there = next(path for path in (directory, *directory.parents) if path.exists())
    mend = f"Give it to the daemon's user, or set PROCESSOR_SPOOL_DIR. (User id here: {os.getuid()}.)"
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free // 1_000_000
    except OSError as error:
        yield fail("spool", f"{there} cannot be written: {error.strerror}", mend)
        return
    if free < _FREE_MB:
        yield warn("spool", f"{directory} has only {free} MB left", "Make room, or set PROCESSOR_SPOOL_DIR.")
    else:
        yield ok("spool", f"{directory} can be written, {free} MB are free")


def _duration(seconds: float) -> str:
    for unit, length in (("days", _A_DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _is_near(hostname: str) -> bool:
    """Whether a name is of this machine or its own network, as far as a name can tell."""
    try:
        return ip_address(hostname).is_private
    except ValueError:
        return "." not in hostname or hostname.endswith((".local", ".internal", ".localhost"))
