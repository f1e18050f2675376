"""What the libraries below the feed may log."""

import logging
from contextvars import ContextVar

_hushed: ContextVar[bool] = ContextVar("feed_owns_this_realtime_client", default=False)


class _Hush(logging.Filter):
    """Drops the lines of the Realtime client that the feed owns."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _hushed.get()


_hush = _Hush()


def hush_client() -> None:
    """Silence the Realtime client in the current task and all tasks it starts.

    Its lines repeat every failed attempt at level ERROR, and whole rows at DEBUG; the feed says why an
    incarnation ended once, and better. The same client in other hands logs as before. The websocket
    library is kept off DEBUG for everybody: there it logs the request line, with the API key in it.
    """
    _hushed.set(True)
    for name in ("websockets", "websockets.client"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)
    for name in ("client", "channel", "push", "timer"):
        logging.getLogger(f"realtime._async.{name}").addFilter(_hush)  # adding it twice changes nothing
