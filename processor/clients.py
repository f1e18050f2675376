"""The client that handlers get for the application's own tables, storage and functions."""

from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from supabase import AsyncClient


class ApplicationClient:
    """One supabase client for all jobs, made when the first handler asks for it.

    The daemon's own calls never go through it: handlers may exhaust its pool without starving them.
    ``api_key`` is the public key, where ``key`` is a token that opens no gateway by itself.
    """

    def __init__(self, url: str, key: str, *, api_key: str | None = None) -> None:
        self._url = url
        self._key = key
        self._api_key = api_key or key
        self._client: AsyncClient | None = None
        self._http: httpx.AsyncClient | None = None

    def get(self) -> "AsyncClient":
        """Return the client."""
        if self._client is None:
            from supabase import AsyncClient, AsyncClientOptions  # noqa: PLC0415 - 0.3 s that most daemons save

            self._http = httpx.AsyncClient(
                timeout=httpx.Timeout(60, connect=10), http2=False, follow_redirects=True
            )
            options = AsyncClientOptions(
                httpx_client=self._http, auto_refresh_token=False, persist_session=False
            )
            if self._api_key != self._key:
                options.headers["Authorization"] = f"Bearer {self._key}"
            self._client = AsyncClient(self._url, self._api_key, options)
        return self._client

    async def aclose(self) -> None:
        """Close its connections."""
        if self._http is not None:
            await self._http.aclose()
