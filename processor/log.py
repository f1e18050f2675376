"""Logging: structlog with stable event names, JSON for machines, colours for people, no secrets."""

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, TextIO

import structlog

from processor.redact import redact, remember

_QUIET = (
    "httpx",
    "httpcore",
    "websockets",
    "realtime",
    "hpack",
    "asyncio",
    "uvicorn.access",
    "sse_starlette",
)
"""Libraries whose chatter shows keys or what is in jobs, or says what our own events say better."""

_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""How grave the journal takes a line to be: syslog's numbers."""

_LINES, _LINE, _CHARACTERS = 80, 2000, 16_000
"""How much of a traceback is logged: lines, characters of a line, characters in all."""


def set_up(
    level: str = "info",
    style: Literal["auto", "json", "console"] = "auto",
    secrets: tuple[str, ...] = (),
) -> None:
    """Send everything, the standard library's loggers included, to stderr; hide ``secrets`` from now on.

    Our own lines do not pass through the standard library: there are two of each job, and it would take
    three times as long over them.
    """
    remember(*secrets)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    console = for_people(style)
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_print_traceback)]
        if console
        else [
            structlog.processors.ExceptionRenderer(format_traceback),
            _journal if to_journal(style) else _json,
        ]
    )
    lines = _Lines(sys.stderr)
    structlog.configure(
        processors=[*shared, _never_failing(last), redactor],
        logger_factory=lambda *_: lines,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, redactor],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def for_people(style: Literal["auto", "json", "console"]) -> bool:
    """Whether lines of this style are read as they are, on a terminal."""
    return style == "console" or (style == "auto" and sys.stderr.isatty())


def to_journal(style: Literal["auto", "json", "console"]) -> bool:
    """Whether lines of this style go to systemd's journal, which has a clock and an idea of levels itself."""
    if style != "auto":
        return False
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or something else in its place
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


class _Lines:
    """Where our lines go, one write each. A line that cannot be written is lost, and nothing but it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def msg(self, line: str) -> None:
        # ignored: a full disk, a pipe without a reader, a closed file
        with suppress(OSError, ValueError), self._lock:
            self._file.write(line + "\n")
            self._file.flush()

    debug = info = warning = error = critical = exception = log = msg


_encode = json.JSONEncoder(default=str).encode


def _json(_logger: Any, _name: str, event: structlog.typing.EventDict) -> str:
    return _encode(event)


def _journal(_logger: Any, _name: str, event: structlog.typing.EventDict) -> str:
    priority = _PRIORITIES.get(event.get("level", ""), 6)
    return f"<{priority}>{_encode({name: event[name] for name in event if name != 'timestamp'})}"


def _never_failing(render: Sequence[structlog.typing.Processor]) -> structlog.typing.Processor:
    """Make one of the last processors: a field that cannot be shown must not fail the job that logs it."""

    def rendered(logger: Any, name: str, event: structlog.typing.EventDict) -> Any:
        plain = {key: event[key] for key in ("event", "level", "timestamp") if key in event}
        try:
            line: Any = event
            for processor in render:
                line = processor(logger, name, line)
        except Exception as error:  # noqa: BLE001 - the repr() of whatever an application logs
            return _encode({**plain, "log_error": f"the fields cannot be shown: {type(error).__name__}"})
        return line

    return rendered


def redactor(_logger: Any, _name: str, line: Any) -> str:
    """Hide every secret in the finished line, tracebacks included: the last processor."""
    return redact(str(line))


def format_traceback(exc_info: Any) -> str:
    """Return a traceback of at most 80 lines and 16,000 characters: its beginning, and more of its end."""
    try:
        text = "".join(traceback.format_exception(*exc_info))
    except Exception as error:  # noqa: BLE001 - an exception's own code writes a part of it
        return f"{exc_info[0].__name__}: its traceback cannot be written, because of {type(error).__name__}"
    lines = [line if len(line) <= _LINE else f"{line[:_LINE]}…" for line in text.rstrip().splitlines()]
    if len(lines) > _LINES:
        left_out = f"  … {len(lines) - _LINES} lines left out …"
        lines = [*lines[: _LINES // 4], left_out, *lines[-_LINES * 3 // 4 :]]
    text = "\n".join(lines)
    if len(text) > _CHARACTERS:
        left_out = f"\n  … {len(text) - _CHARACTERS} characters left out …\n"
        text = text[: _CHARACTERS // 4] + left_out + text[-_CHARACTERS * 3 // 4 :]
    return text


def _print_traceback(stream: TextIO, exc_info: Any) -> None:
    stream.write(f"\n{format_traceback(exc_info)}")


class JobLog:
    """The logger of one job: lines go to the daemon's log and to the job's rows in ``job_logs``."""

    def __init__(self, logger: Any, keep: Callable[[str, str, dict[str, Any]], None]) -> None:
        self._logger = logger
        self.keep = keep
        """Keeps a line for the job's owner: level, message, fields."""

    def bind(self, **fields: Any) -> "JobLog":
        """Return a logger that adds ``fields`` to each of its lines."""

        def keep(level: str, message: str, more: dict[str, Any]) -> None:
            self.keep(level, message, {**fields, **more})

        return JobLog(self._logger.bind(**fields), keep)

    def debug(self, message: str, **fields: Any) -> None:
        """Log for developers: only the daemon's log gets it."""
        self._logger.debug("job.log", message=message, **fields)

    def info(self, message: str, **fields: Any) -> None:
        """Log what the job's owner may read."""
        self._log("info", message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """Log something the job's owner should read."""
        self._log("warning", message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """Log something that went wrong."""
        self._log("error", message, fields)

    def _log(self, level: str, message: str, fields: dict[str, Any]) -> None:
        self.keep(level, message, fields)  # first: it refuses what is not ours to say any more
        getattr(self._logger, level)("job.log", message=message, **fields)
