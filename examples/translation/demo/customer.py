"""The user, with no more rights than a browser has: signs up, orders, watches own rows over Realtime."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from pydantic import TypeAdapter
from realtime.types import (
    PostgresChangesPayload,
    RealtimePostgresChangesListenEvent,
    RealtimeSubscribeStates,
)
from supabase import AsyncClient, AsyncClientOptions, create_async_client

from examples.translation.card import Card
from examples.translation.demo.process import DemoError

SUBSCRIBE_SECONDS = 10.0
_ROW = TypeAdapter(dict[str, Any])
_ROWS = TypeAdapter(list[dict[str, Any]])
WATCHED = ("jobs", "job_items", "credit_accounts")


class Customer:
    """A signed-up user and their client."""

    def __init__(self, client: AsyncClient, user_id: str, email: str) -> None:
        self.id = user_id
        self.email = email
        self._client = client

    async def watch(self, tell: Callable[[str, dict[str, Any]], None]) -> None:
        """Have `tell(table, row)` called for every change of the user's rows; returns when it is live."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_state(state: RealtimeSubscribeStates, error: Exception | None) -> None:
            if state is not RealtimeSubscribeStates.SUBSCRIBED and not ready.done():
                ready.set_exception(DemoError(f"Realtime refused the user's subscription: {error or state}"))

        def on_change(change: PostgresChangesPayload) -> None:
            if record := change["data"].get("record"):
                tell(change["data"]["table"], record)

        channel = self._client.channel(f"demo-{self.id}")
        for table in WATCHED:
            channel.on_postgres_changes(
                RealtimePostgresChangesListenEvent.All, on_change, table=table, schema="public"
            )
        # joined is not yet live: the server says so in a message of its own
        channel.on_system(lambda _ok: None if ready.done() else ready.set_result(None))
        await channel.subscribe(on_state)
        try:
            await asyncio.wait_for(ready, SUBSCRIBE_SECONDS)
        except TimeoutError:
            raise DemoError(f"Realtime was not live for the user after {SUBSCRIBE_SECONDS:g} s") from None

    async def order(self, card: Card, languages: Sequence[str]) -> dict[str, Any]:
        """Create the job; its credits are reserved in the same transaction."""
        answer = await self._client.rpc(
            "create_job", {"kind": "translate_card", "payload": card.model_dump(), "items": list(languages)}
        ).execute()
        return _ROW.validate_python(answer.data)

    async def rows(self, table: str, order: str, **equal: str) -> list[dict[str, Any]]:
        """Read the user's rows as the API gives them."""
        query = self._client.table(table).select("*")
        for column, value in equal.items():
            query = query.eq(column, value)
        return _ROWS.validate_python((await query.order(order).execute()).data)


@asynccontextmanager
async def signed_up(url: str, anon_key: str) -> AsyncIterator[Customer]:
    """Sign a new user up, with a connection for as long as the block lasts."""
    client = await create_async_client(url, anon_key, AsyncClientOptions(auto_refresh_token=False))
    try:
        email = f"ada-{secrets.token_hex(3)}@example.com"
        answer = await client.auth.sign_up({"email": email, "password": secrets.token_urlsafe(16)})
        if answer.user is None or answer.session is None:
            raise DemoError("the sign-up gave no session: does this project want e-mails to be confirmed?")
        await client.realtime.set_auth(answer.session.access_token)
        yield Customer(client, answer.user.id, email)
    finally:
        await close(client)


async def close(client: AsyncClient) -> None:
    """Close what a client holds open: it has no method for it."""
    await client.realtime.close()
    await client.postgrest.aclose()
    await client.auth.close()
