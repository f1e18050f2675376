"""Asking a project: functions are called and rows are read over PostgREST, as whoever the key belongs to.

What is asked must be safe to repeat, so transport errors are repeated here, with full jitter. What the
API refuses becomes the error of :mod:`processor.errors` that says so.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import Any
from urllib.parse import urlencode

import structlog
from pydantic import TypeAdapter, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from processor.errors import ApiError, ApiUnreachable
from processor.observer import NOBODY, Observer
from processor.refusal import refused
from processor.transport import Answer, Transport

log = structlog.get_logger("processor.rpc")


class Caller:
    """A connection to one project, with the rights of ``key``.

    ``patience`` is how long, in seconds, a call is repeated while the API cannot be reached;
    ``observer`` hears of every request.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        api_key: str | None = None,
        patience: float = 10.0,
        observer: Observer = NOBODY,
    ) -> None:
        self.url = url
        self.calls: Counter[str] = Counter()
        """Requests sent so far, by function."""
        self._patience = patience
        self._observer = observer
        self._api_key = api_key if api_key != key else None
        # a project may expose another schema first
        public = {"Content-Profile": "public", "Accept-Profile": "public"}
        self._transport = Transport(url, {"Accept": "application/json", **public})
        self.set_key(key)

    def set_key(self, key: str) -> None:
        """Show another key from the next request on."""
        self._transport.headers["apikey"] = self._api_key or key
        if not key.startswith("sb_"):  # such a key is no token: the gateway makes one of it
            self._transport.headers["Authorization"] = f"Bearer {key}"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def _call(
        self,
        function: str,
        arguments: dict[str, Any],
        shape: TypeAdapter[Any] | None = None,
        *,
        patience: float | None = None,
        silence: float | None = None,
    ) -> Any:
        """Return the answer: of ``shape``, if one is given and it is such, or else as plain JSON.

        ``patience`` 0 is for what is not to be repeated; ``silence`` in seconds, for what takes longer than
        functions do.
        """
        send = partial(self._transport.post, f"/rest/v1/rpc/{function}", arguments, silence=silence)
        return await self._repeat(function, send, shape, self._patience if patience is None else patience)

    async def _select(self, table: str, query: dict[str, str], *, patience: float | None = None) -> Any:
        """Return the rows of a table or view that a query in PostgREST's grammar asks for."""
        send = partial(self._transport.get, f"/rest/v1/{table}?{urlencode(query)}")
        return await self._repeat(table, send, None, self._patience if patience is None else patience)

    async def _repeat(
        self,
        name: str,
        send: Callable[[], Awaitable[Answer]],
        shape: TypeAdapter[Any] | None,
        patience: float,
    ) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return await self._once(name, send, shape)
        except ApiUnreachable as error:  # only now ask tenacity: it takes longer than reading the answer does
            unreachable: ApiUnreachable | None = error

        def note(state: RetryCallState) -> None:
            if state.attempt_number & (state.attempt_number - 1):
                return  # the 1st, 2nd, 4th, 8th … time: enough to see that it lasts
            error = state.outcome.exception() if state.outcome else None
            log.warning("rpc.repeated", function=name, attempt=state.attempt_number, error=str(error))

        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ApiUnreachable),
            wait=wait_random_exponential(multiplier=0.2, max=3),
            stop=stop_after_delay(patience - (loop.time() - began)),
            before_sleep=note,
            reraise=True,
        ):
            with attempt:
                if unreachable is not None:
                    first, unreachable = unreachable, None
                    raise first
                return await self._once(name, send, shape)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(
        self, name: str, send: Callable[[], Awaitable[Answer]], shape: TypeAdapter[Any] | None
    ) -> Any:
        self.calls[name] += 1
        began = time.monotonic()
        try:
            answer = await self._answered(name, send, shape)
        except ApiError as error:
            result = "unreachable" if isinstance(error, ApiUnreachable) else "refused"
            self._observer.api_called(name, result, time.monotonic() - began)
            raise
        self._observer.api_called(name, "ok", time.monotonic() - began)
        return answer

    async def _answered(
        self, name: str, send: Callable[[], Awaitable[Answer]], shape: TypeAdapter[Any] | None
    ) -> Any:
        answer = await send()
        if not answer.is_success:
            refused(self.url, name, answer)
        if shape is not None:
            # in one step, which takes half the time; what fails is looked at again more closely
            with suppress(ValidationError):
                return shape.validate_json(answer.body)
        try:
            return json.loads(answer.body, parse_int=_integer) if answer.body else None
        except ValueError as error:  # a proxy that wants somebody to log in, or the like
            raise ApiUnreachable(
                f"Something at {self.url} answered {name} with other than JSON: {error}",
                hint="Check SUPABASE_URL and what stands between.",
            ) from error
        except RecursionError as error:
            raise ApiError(f"{name} answered with JSON that is nested too deeply to be read") from error


def _integer(digits: str) -> int | Decimal:
    """Read a whole number of ``jsonb``, which may have more digits than Python makes an int of."""
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)
