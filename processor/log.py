"""Logging: structlog with stable event names, JSON for machines, colours for people, no secrets.

Whatever a handler logs, through structlog or the standard library, says which job it is about.
"""

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, TextIO

import structlog

from processor.logfile import LogFile
from processor.redact import redact, remember
from processor.repeats import Kind, Repeats, kind_of

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


Style = Literal["auto", "json", "console"]

_job: ContextVar[Mapping[str, Any] | None] = ContextVar("processor_job", default=None)


@dataclass(frozen=True, slots=True)
class _Use:
    """How this process logs."""

    level: str
    style: Style
    file: LogFile | None
    repeats: Repeats

    @property
    def out(self) -> "LogFile | TextIO":
        return self.file or sys.stderr

    @property
    def people(self) -> bool:
        return self.style == "console" or (self.style == "auto" and self.out.isatty())

    @property
    def journal(self) -> bool:
        """Whether lines go to systemd's journal, which has a clock and an idea of levels itself."""
        if self.style != "auto" or self.file is not None:
            return False
        try:
            stream = os.fstat(sys.stderr.fileno())
        except (OSError, ValueError):  # closed, or something else in its place
            return False
        return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


def set_up(
    level: str = "info",
    style: Style = "auto",
    secrets: tuple[str, ...] = (),
    *,
    file: LogFile | None = None,
    repeats: int = 0,
) -> None:
    """Send everything, the standard library's loggers included, to one place; hide ``secrets`` from now on.

    Our own lines do not pass through the standard library: there are two of each job, and it would take
    three times as long over them.

    Args:
        level: the least level that is logged.
        style: for machines or for people.
        secrets: what nobody may see.
        file: where to; None: stderr.
        repeats: the same warning or error at most so many times a minute; 0: always.

    """
    remember(*secrets)
    _apply(_Use(level, style, file, Repeats(repeats, _tell_repeated)))


def renew(level: str, secrets: tuple[str, ...]) -> None:
    """Go by another level from now on; open the log's file again, which may have been moved away."""
    remember(*secrets)
    flush()
    _apply(replace(_use, level=level))
    if _use.file is not None:
        try:
            _use.file.reopen()
        except OSError as error:
            path = _use.file.baseFilename
            structlog.get_logger("processor.log").warning(
                "log.not_reopened", file=path, error=str(error), then="the open one is written to as before"
            )


def flush() -> None:
    """Tell what has been left out so far because it repeats."""
    _use.repeats.tell()


def for_people() -> bool:
    """Whether lines are read as they are, on a terminal."""
    return _use.people


def of_job(fields: Mapping[str, Any]) -> None:
    """Have all lines carry these fields from here on: of this task, of what it starts, of its threads."""
    _job.set(fields)


def in_context(logger: Any, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Add to a line what it is about: a processor."""
    fields = _job.get()
    if fields is not None and "job_id" not in event:  # our own lines of jobs have them already
        event.update({key: value for key, value in fields.items() if key not in event})
    return structlog.contextvars.merge_contextvars(logger, name, event)


_use = _Use("info", "auto", None, Repeats(0, lambda _kind, _lines: None))


def _apply(use: _Use) -> None:
    global _use  # noqa: PLW0603  there is one log in a process, as there is one root logger
    _use = use
    out = use.out
    shared: list[structlog.typing.Processor] = [
        in_context,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=_print_traceback)]
        if use.people
        else [structlog.processors.ExceptionRenderer(format_traceback), _journal if use.journal else _json]
    )
    lines = _Lines(out)
    structlog.configure(
        processors=[_drop_repeated, *shared, _never_failing(last), redactor],
        logger_factory=lambda *_: lines,
        wrapper_class=structlog.make_filtering_bound_logger(use.level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.addFilter(_keep_record)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, redactor],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(use.level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _tell_repeated(kind: Kind, lines: int) -> None:
    level, event, *fields = kind
    structlog.get_logger("processor.log").warning(
        "log.repeated", of=event, of_level=level, like=fields, lines=lines
    )


def _drop_repeated(_logger: Any, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if name in {"info", "debug"} or event.get("event") == "log.repeated":
        return event
    if _use.repeats.too_many(kind_of(name, event)):
        raise structlog.DropEvent
    return event


def _keep_record(record: logging.LogRecord) -> bool:
    """Decide on a line of the standard library's: its template counts, not what is filled in."""
    if record.levelno < logging.WARNING:
        return True
    fields = record.msg if isinstance(record.msg, Mapping) else {"event": f"{record.name}: {record.msg}"}
    kind = kind_of(record.levelname.lower(), {"exc_info": record.exc_info, **fields})
    return not _use.repeats.too_many(kind)


class _Lines:
    """Where our lines go, one write each. A line that cannot be written is lost, and nothing but it."""

    def __init__(self, file: LogFile | TextIO) -> None:
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
