"""The key as a thing that changes: read anew before it expires, or when somebody says so.

A secret key stays what it is. A token (a JWT) has an end; whoever issues it writes the next one where this
one came from, and everything that shows the key follows.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import structlog

from processor.config import claims_of
from processor.errors import ConfigError

_REFRESH_AT = 0.8
"""The share of a token's life after which its source is read again …"""
_A_DAY = 86400.0
"""… or so many seconds before its end, if that is later: nobody renews a token of ten years after eight."""
_HURRY = 0.05
"""Near the end the source is read again after this share of the token's life …"""
_SHORTEST, _LONGEST = 0.5, 5.0
"""… but no sooner and no later than after so many seconds."""
_LONGEST_SLEEP = 3600.0
"""Seconds after which the clock is looked at again: it may have been set, or the machine have slept."""

log = structlog.get_logger("processor.credential")


class Credential:
    """The key that this process shows at the moment.

    :param source: returns the key as it is now: the content of a file, for example. For one that cannot be
        read or used it raises :class:`ConfigError` or :class:`OSError`; the key at hand is kept then

    Raises what ``source`` raises: without a first key there is nothing to begin with.
    """

    def __init__(self, source: Callable[[], str]) -> None:
        self._source = source
        self._callbacks: list[Callable[[str], None]] = []
        self._woken = asyncio.Event()
        self._token = source()
        self._issued = time.time()
        self._expires_at = expiry_of(self._token)
        self._warned_of: float | None = None
        """The end that has been warned of."""
        self._mourned: float | None = None
        """The end that has been reported as past."""

    @property
    def token(self) -> str:
        """The key, as it goes into a header."""
        return self._token

    @property
    def expires_at(self) -> float | None:
        """When it ends, in seconds since the epoch; None: never, as far as can be told."""
        return self._expires_at

    @property
    def problem(self) -> str | None:
        """Why nothing can be done with it any more; None while it lives."""
        if self._expires_at is None or time.time() < self._expires_at:
            return None
        return f"the key expired {time.time() - self._expires_at:.0f} s ago, and its source has no newer one"

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Have ``callback`` called with every new key, in the event loop."""
        self._callbacks.append(callback)

    def refresh(self) -> bool:
        """Read the source now; return whether it has a new key. What cannot be used is said and not taken."""
        try:
            token = self._source()
        except (ConfigError, OSError) as error:
            log.error("credential.unreadable", error=str(error), expires_in_s=self._left())  # noqa: TRY400  the reason is the whole story
            return False
        if token == self._token:
            return False
        expires_at = expiry_of(token)
        if expires_at is not None and expires_at <= time.time():
            log.error("credential.stale", reason="the newer key at its source has expired already")
            return False
        self._token, self._issued, self._expires_at = token, time.time(), expires_at
        log.info("credential.renewed", expires_in_s=self._left())
        for callback in self._callbacks:
            try:
                callback(token)
            except Exception:
                log.exception("credential.callback_failed", callback=getattr(callback, "__name__", "?"))
        self._woken.set()
        return True

    async def run(self) -> None:
        """Read the source again in time, for ever; a key without an end is left alone until `refresh`."""
        while True:
            self._woken.clear()
            try:
                async with asyncio.timeout(self._pause()):
                    await self._woken.wait()
            except TimeoutError:
                if self._is_due() and not self.refresh():
                    self._warn()

    def _left(self) -> float | None:
        return None if self._expires_at is None else round(self._expires_at - time.time(), 1)

    def _is_due(self) -> bool:
        return self._expires_at is not None and time.time() >= self._due_at(self._expires_at)

    def _due_at(self, expires_at: float) -> float:
        """Return when its source is to be read: a token that was old when we got it is due at once."""
        begun = min(issue_of(self._token) or self._issued, self._issued)
        return max(begun + _REFRESH_AT * (expires_at - begun), expires_at - _A_DAY)

    def _pause(self) -> float | None:
        if self._expires_at is None:
            return None
        wait = self._due_at(self._expires_at) - time.time()
        if wait > 0:
            # workers that got their tokens together do not ask for the next ones together
            return min(wait * random.uniform(0.95, 1), _LONGEST_SLEEP) + 0.01  # noqa: S311  jitter, no secret
        return min(max(_HURRY * (self._expires_at - self._issued), _SHORTEST), _LONGEST)

    def _warn(self) -> None:
        """Say that no newer key has come: once in time, and once when it is too late."""
        left = self._left()
        if left is not None and left <= 0 and self._mourned != self._expires_at:
            self._mourned = self._warned_of = self._expires_at
            log.critical("credential.expired", expired_s_ago=-left, reason=_ADVICE)
        elif self._warned_of != self._expires_at:
            self._warned_of = self._expires_at
            log.error("credential.not_renewed", expires_in_s=left, reason=_ADVICE)


_ADVICE = "the source of the key has no newer one: renew the token there, it is read again every few seconds"


def expiry_of(key: str) -> float | None:
    """Return when a token ends, in seconds since the epoch; None: never, or not known."""
    return _moment(claims_of(key).get("exp"))


def issue_of(key: str) -> float | None:
    """Return when a token was issued, in seconds since the epoch, if it says so."""
    return _moment(claims_of(key).get("iat"))


def _moment(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
