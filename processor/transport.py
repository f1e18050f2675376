"""The HTTP of the control path: one request, and what came back, whatever it was.

aiohttp, because a call costs it a fifth of what it costs httpx, and every job that is picked up waits for
one. Handlers' clients are httpx, so the certificates that are trusted are those that httpx trusts.
"""

import asyncio
import json
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx

from processor.errors import ApiUnreachable, ConfigError

# every function takes milliseconds: whoever is silent for so long has lost the answer, and is asked again
_TIMEOUT = aiohttp.ClientTimeout(sock_connect=5, sock_read=10)
_ANSWER_SECONDS = 25.0
"""Until the answer begins: what connecting and silence may take, and as long again to take the request."""
_KEEP_ALIVE_SECONDS = 60.0
"""Longer than the heartbeat's interval: the heartbeat keeps one connection warm for the next claim."""
_CONNECTIONS = 20
_AT_ONCE = 1 << 20
"""Bytes that are given to a socket in one piece; more of them go bit by bit, and others have their turn."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, read to its end."""

    status: int
    reason: str
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the status says so."""
        return 200 <= self.status < 300


class Transport:
    """Connections to one project, made when they are first needed.

    :param url: the project's
    :param headers: sent with every request from now on; they may be changed
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.url = url
        self.headers = headers | {"Content-Type": "application/json"}
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Any, *, silence: float | None = None) -> Answer:
        """Send JSON; return the answer, success or not. ``silence`` in seconds: how long it may take to come.

        Raises:
            ApiUnreachable: there was none, or it broke off.
            ConfigError: the environment names a proxy of an unknown kind.

        """
        data = _encode(body).encode()
        return await self._send("POST", path, data if len(data) <= _AT_ONCE else BytesIO(data), silence)

    async def get(self, path: str) -> Answer:
        """Ask for what is at an encoded path; return the answer, and raise, as :meth:`post` does."""
        return await self._send("GET", path, None)

    async def _send(
        self, method: str, path: str, data: bytes | BytesIO | None, silence: float | None = None
    ) -> Answer:
        if self._session is None:
            self._session = self._open()
        try:
            async with asyncio.timeout(silence or _ANSWER_SECONDS) as patience:
                response = await self._session.request(
                    method,
                    self.url + path,
                    data=data,
                    headers=self.headers,
                    allow_redirects=False,
                    timeout=_TIMEOUT if silence is None else _patient(silence),
                )
                patience.reschedule(None)  # from here on it is silence that counts, not length
                async with response:
                    return Answer(response.status, response.reason or "", await response.read())
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            text = str(error) or type(error).__name__
            raise ApiUnreachable(
                f"No answer from {self.url}: {text}", hint="Check SUPABASE_URL and the network."
            ) from error

    async def aclose(self) -> None:
        """Close the connections; harmless if there are none."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        secure = self.url.startswith("https:")
        connector = aiohttp.TCPConnector(
            limit=_CONNECTIONS,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            ssl=httpx.create_ssl_context() if secure else True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=_TIMEOUT,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy(self.url),
        )


def _patient(silence: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(sock_connect=_TIMEOUT.sock_connect, sock_read=silence)


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for an address."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    if not proxy.startswith(("http://", "https://")):
        raise ConfigError(f"{parts.scheme.upper()}_PROXY: {proxy!r} must be the http:// address of a proxy.")
    return proxy
