"""The arrows between the rooms of the package, as its files have them."""

import ast
from pathlib import Path

import pytest

import processor

ROOT = Path(processor.__file__).parent
ARROWS = {
    "errors": set(),
    "jsonb": set(),
    "job": set(),
    "logfile": {"errors"},
    "repeats": set(),
    "log": {"logfile", "redact", "repeats"},
    "service": set(),
    "records": set(),
    "spool": {"records"},
    "sources": {"errors"},
    "brokers": set(),
    "config": {"brokers", "errors", "sources", "spool"},
    "clients": set(),
    "credential": {"config", "errors"},
    "redact": set(),
    "upstream": {"errors", "refusal"},
    "retry": {"errors", "job", "jsonb", "redact", "upstream"},
    "hold": set(),
    "facts": {"job"},
    "checkpoints": {"errors", "job", "jsonb"},
    "context": {"checkpoints", "errors", "facts", "job", "jsonb", "log"},
    "calls": {"clients", "context", "errors", "facts", "hold", "job", "jsonb", "log", "tracing"},
    "cron": {"errors"},
    "signature": {"calls", "context", "errors"},
    "resources": {"errors"},
    "middleware": {"context", "errors", "resources"},
    "hooks": {"errors", "job", "resources"},
    "timetable": {"cron", "errors", "jsonb"},
    "subscribers": {"errors", "events", "resources"},
    "app": {
        *("errors", "events", "hooks", "middleware", "resources", "retry", "signature", "subscribers"),
        "timetable",
    },
    "transport": {"errors"},
    "refusal": {"errors", "transport"},
    "answers": {"job"},
    "observer": set(),
    "events": {"observer"},
    "tracing": {"carriers", "errors", "job", "spans"},
    "carriers": set(),
    "spans": {"carriers", "job", "tracing"},
    "points": {"spans"},
    "telemetry": {"errors", "metrics", "points", "tracing"},
    "incidents": {"config", "errors", "job", "sentry"},
    "sentry": {"errors", "incidents", "job", "redact"},
    "afterwards": {"clients", "events", "hooks", "incidents", "job", "log", "observer"},
    "caller": {"errors", "observer", "refusal", "transport"},
    "rpc": {"answers", "caller", "errors", "job", "redact"},
    "operators": {"caller"},
    "assignment": {"app", "errors", "subscribers", "timetable"},
    "schedules": {"answers", "cron", "errors", "rpc"},
    "maintenance": {"errors", "rpc"},
    "keep": {"answers", "job", "records", "spool"},
    "settle": {"answers", "errors", "job", "keep", "rpc", "spool"},
    "replay": {"errors", "keep", "records", "rpc", "settle", "spool"},
    "report": {"errors", "job", "jsonb", "redact", "rpc"},
    "run": {"answers", "events", "job"},
    "endings": {"answers", "context", "errors", "events", "job", "jsonb", "retry", "run"},
    "desk": {
        *("clients", "errors", "events", "hold", "incidents", "job", "jsonb", "redact"),
        *("report", "retry", "run", "settle", "tracing"),
    },
    "executor": {
        *("app", "calls", "clients", "config", "context", "desk", "errors", "hold", "job", "jsonb"),
        *("afterwards", "hooks", "incidents"),
        *(
            "answers",
            "endings",
            "events",
            "log",
            "middleware",
            "report",
            "retry",
            "run",
            "settle",
            "signature",
            "tracing",
        ),
    },
    "lane": {"answers"},
    "worker": {"answers", "errors", "events", "executor", "lane", "observer", "rpc", "run"},
    "lease": {"answers", "errors", "events", "hold", "rpc", "run", "worker"},
    "checks": {"credential", "lease", "resources", "service", "worker"},
    "drain": {"afterwards", "config", "errors", "rpc", "run", "settle", "worker"},
    "signals": set(),
    "dump": {"feed", "redact", "report", "settle", "worker"},
    "status": {"config", "feed", "hold", "redact", "report", "rpc", "settle", "worker"},
    "reload": {"config", "errors"},
    "alerts": {"answers"},
    "notify": set(),
    "single": {"config", "errors"},
    "feed": {"errors", "events", "observer"},
    "figures": {"answers", "errors"},
    "mqtt": {
        *("answers", "config", "errors", "events", "figures", "hold", "redact", "rpc", "service", "settle"),
        "worker",
    },
    "metrics": {
        *("answers", "assignment", "config", "errors", "events", "figures", "hold", "observer", "settle"),
        "worker",
    },
    "web": {"config", "errors"},
    "webhooks": {"answers", "app", "config", "context", "errors", "job", "rpc", "upstream"},
    "schema": {"errors", "rpc"},
    "doctor": {"config", "errors", "feed", "rpc", "schema"},
}
"""Room → the rooms it may import; what is not listed here (cli, daemon) is above them all."""
LOCAL_MAY_BE_IMPORTED_BY = {"local", "cli"}


def imports(path: Path) -> set[str]:
    """Return the rooms of this package that a file imports, wherever in the file."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("processor.")}
    return {room for room in rooms if (ROOT / room).is_dir() or (ROOT / f"{room}.py").exists()}


def files(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ARROWS)
def test_a_room_imports_only_what_its_arrows_allow(room: str) -> None:
    found = files(room)
    assert found, f"there is no room {room}"
    for path in found:
        assert imports(path) - {room} <= ARROWS[room], path


def test_local_mode_is_imported_by_the_command_line_only() -> None:
    users = {
        path.relative_to(ROOT).parts[0].removesuffix(".py")
        for path in ROOT.rglob("*.py")
        if "local" in imports(path)
    }
    assert users <= LOCAL_MAY_BE_IMPORTED_BY


def test_all_of_the_package_is_sorted_and_exists() -> None:
    assert list(processor.__all__) == sorted(processor.__all__)
    assert all(hasattr(processor, name) for name in processor.__all__)
