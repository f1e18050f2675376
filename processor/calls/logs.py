"""What is logged in a handler's process arrives in the daemon's log."""

import json
import logging
from collections.abc import Callable
from typing import Any

import structlog

from processor.log import in_context

_SHARED: list[structlog.typing.Processor] = [
    in_context,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def set_up(level: str, send: Callable[[dict[str, Any]], None]) -> None:
    """Send everything that is logged in this process, the standard library's loggers included."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_Sender(send)]
    root.setLevel(level.upper())


def relay(record: dict[str, Any], **fields: Any) -> None:
    """Log in the daemon what a process has logged, with ``fields`` beside it."""
    logger = logging.getLogger(record["name"])
    if logger.isEnabledFor(record["levelno"]):
        event = {**record["event"], **fields}
        logger.handle(
            logging.makeLogRecord({**record, "msg": event, "_logger": logger, "_name": event["level"]})
        )


class _Sender(logging.Handler):
    """Sends records as plain values: what they name may not exist where they arrive."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._send = send
        self._formatter = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
        )

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = json.loads(self._formatter.format(record))
        except Exception:  # noqa: BLE001 - the repr() of whatever an application logs
            self.handleError(record)
            return
        self._send(
            {"name": record.name, "levelno": record.levelno, "levelname": record.levelname, "event": event}
        )
