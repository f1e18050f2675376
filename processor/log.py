"""Logging: structlog with stable event names, JSON for machines, colours for people, no secrets."""

import logging
import sys
from collections.abc import Callable
from typing import Any, Literal

import structlog

_QUIET = ("httpx", "httpcore", "websockets", "realtime", "hpack", "asyncio", "uvicorn.access")
"""Libraries whose chatter names URLs with keys, or says what our own events say better."""


def set_up(
    level: str = "info",
    style: Literal["auto", "json", "console"] = "auto",
    secrets: tuple[str, ...] = (),
) -> None:
    """Send everything, the standard library's loggers included, to stderr; hide ``secrets`` in it."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, redactor(secrets)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def redactor(secrets: tuple[str, ...]) -> Callable[[Any, str, Any], str]:
    """Make the last processor, which hides every secret in the finished line, tracebacks included."""
    known = tuple(secret for secret in secrets if len(secret) >= 8)  # shorter ones would mangle words

    def redact(_logger: Any, _name: str, line: Any) -> str:
        text = str(line)
        for secret in known:
            text = text.replace(secret, "[redacted]")
        return text

    return redact


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
