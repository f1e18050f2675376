"""The clients that handlers get for the application's own tables, storage and functions."""

import threading
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from supabase import AsyncClient, Client

_TIMEOUT = httpx.Timeout(60, connect=10)


class ApplicationClient:
    """One supabase client of each kind for all jobs, made when the first handler asks for it.

    The daemon's own calls never go through it: handlers may exhaust its pool without starving them.
    ``api_key`` is the public key, where ``key`` is a token that opens no gateway by itself.
    """

    def __init__(self, url: str, key: str, *, api_key: str | None = None) -> None:
        self.url = url
        self.key = key
        self.api_key = api_key or key
        self._client: AsyncClient | None = None
        self._http: httpx.AsyncClient | None = None
        self._blocking: Client | None = None
        self._blocking_http: httpx.Client | None = None
        self._making = threading.Lock()

    def get(self) -> "AsyncClient":
        """Return the client."""
        if self._client is None:
            from supabase import AsyncClient, AsyncClientOptions  # noqa: PLC0415 - 0.3 s that most daemons save

            self._http = httpx.AsyncClient(timeout=_TIMEOUT, http2=False, follow_redirects=True)
            options = AsyncClientOptions(
                httpx_client=self._http, auto_refresh_token=False, persist_session=False
            )
            if self.api_key != self.key:
                options.headers["Authorization"] = f"Bearer {self.key}"
            self._client = AsyncClient(self.url, self.api_key, options)
        return self._client

    def blocking(self) -> "Client":
        """Return the client for plain functions; any thread may ask for it."""
        with self._making:
            if self._blocking is None:
                from supabase import Client, ClientOptions  # noqa: PLC0415 - 0.3 s that most daemons save

                self._blocking_http = httpx.Client(timeout=_TIMEOUT, http2=False, follow_redirects=True)
                options = ClientOptions(
                    httpx_client=self._blocking_http, auto_refresh_token=False, persist_session=False
                )
                if self.api_key != self.key:
                    options.headers["Authorization"] = f"Bearer {self.key}"
                self._blocking = Client(self.url, self.api_key, options)
            return self._blocking

    async def aclose(self) -> None:
        """Close its connections."""
        if self._blocking_http is not None:
            self._blocking_http.close()
        if self._http is not None:
            await self._http.aclose()
