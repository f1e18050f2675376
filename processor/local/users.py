"""Users, sessions and refresh tokens: what Auth keeps in schema ``auth``."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

# interactive strength: about 50 ms and 16 MiB per password
SCRYPT = {"n": 2**14, "r": 8, "p": 1}


class EmailTakenError(Exception):
    """Another user has this address."""


class RefreshTokenError(Exception):
    """A refresh token that cannot be used: unknown, or ``used`` before."""

    def __init__(self, *, used: bool) -> None:
        super().__init__("refresh token was used before" if used else "refresh token is unknown")
        self.used = used


class Users:
    """The stored users; passwords are kept as salted scrypt hashes.

    Args:
        pool: connected as superuser.

    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(
        self,
        email: str | None,
        password: str | None,
        *,
        user_metadata: Mapping[str, Any],
        app_metadata: Mapping[str, Any],
    ) -> asyncpg.Record:
        """Store a user with a confirmed address; without an address it is an anonymous one.

        Raises:
            EmailTakenError: another user has this address.

        """
        hashed = None if password is None else await hash_password(password)
        try:
            row = await self._pool.fetchrow(
                """
                insert into auth.users
                  (email, encrypted_password, email_confirmed_at, is_anonymous,
                   raw_user_meta_data, raw_app_meta_data)
                values ($1::text, $2, case when $1 is not null then now() end, $1 is null, $3, $4)
                returning *
                """,
                email,
                hashed,
                json.dumps(user_metadata),
                json.dumps(app_metadata),
            )
        except asyncpg.UniqueViolationError as error:
            raise EmailTakenError from error
        assert row is not None  # noqa: S101 - insert … returning
        return row

    async def update(
        self,
        user_id: UUID,
        *,
        email: str | None = None,
        password: str | None = None,
        user_metadata: Mapping[str, Any] | None = None,
        app_metadata: Mapping[str, Any] | None = None,
    ) -> asyncpg.Record | None:
        """Change what is given; metadata is merged, a null removes its key. None when there is no such user.

        Raises:
            EmailTakenError: another user has this address.

        """
        hashed = None if password is None else await hash_password(password)
        try:
            return await self._pool.fetchrow(
                """
                update auth.users
                   set email = coalesce($2::text, email),
                       email_confirmed_at = case when $2 is not null then now() else email_confirmed_at end,
                       is_anonymous = is_anonymous and $2 is null,
                       encrypted_password = coalesce($3, encrypted_password),
                       raw_user_meta_data = (raw_user_meta_data || $4) - $6::text[],
                       raw_app_meta_data = (raw_app_meta_data || $5) - $7::text[],
                       updated_at = now()
                 where id = $1
                returning *
                """,
                user_id,
                email,
                hashed,
                json.dumps(user_metadata or {}),
                json.dumps(app_metadata or {}),
                _removed(user_metadata),
                _removed(app_metadata),
            )
        except asyncpg.UniqueViolationError as error:
            raise EmailTakenError from error

    async def get(self, user_id: UUID) -> asyncpg.Record | None:
        """Return the user, or None."""
        return await self._pool.fetchrow("select * from auth.users where id = $1", user_id)

    async def delete(self, user_id: UUID) -> bool:
        """Remove the user with all sessions; return whether there was one."""
        return await self._pool.execute("delete from auth.users where id = $1", user_id) != "DELETE 0"

    async def page(self, number: int, size: int) -> tuple[list[asyncpg.Record], int]:
        """Return one page of users, the newest first (``number`` counts from 1), and how many there are."""
        rows = await self._pool.fetch(
            "select * from auth.users order by created_at desc, id limit $1 offset $2",
            size,
            (number - 1) * size,
        )
        return rows, await self._pool.fetchval("select count(*) from auth.users")

    async def by_password(self, email: str, password: str) -> asyncpg.Record | None:
        """Return the user who has this address and password, or None."""
        row = await self._pool.fetchrow("select * from auth.users where email = $1", email)
        # an unknown address costs the same time as a wrong password
        stored = (row and row["encrypted_password"]) or await hash_password("")
        matches = await _matches(password, stored)
        return row if row is not None and row["encrypted_password"] is not None and matches else None

    async def sign_in(self, user_id: UUID) -> tuple[asyncpg.Record, UUID, str] | None:
        """Open a session; return user, session id and first refresh token; None without such a user."""
        async with self._pool.acquire() as connection, connection.transaction():
            user = await connection.fetchrow(
                "update auth.users set last_sign_in_at = now() where id = $1 returning *", user_id
            )
            if user is None:
                return None
            session = await connection.fetchval(
                "insert into auth.sessions (user_id) values ($1) returning id", user_id
            )
            return user, session, await _new_refresh_token(connection, session)

    async def refresh(self, token: str) -> tuple[asyncpg.Record, UUID, str]:
        """Exchange a refresh token for the next one; return the user, the session's id and the new token.

        Raises:
            RefreshTokenError: the token is unknown, or was used before; then the whole session ends, since
                one of the two who hold it has stolen it.

        """
        async with self._pool.acquire() as connection:
            async with connection.transaction():
                session = await connection.fetchval(
                    "update auth.refresh_tokens set revoked = true where token = $1 and not revoked "
                    "returning session_id",
                    token,
                )
                user = await connection.fetchrow(
                    "select * from auth.users where id = (select user_id from auth.sessions where id = $1)",
                    session,
                )
                if user is not None:
                    return user, session, await _new_refresh_token(connection, session)
            # the session stays, so that a second attempt is told the same; none of its tokens works any more
            used = await connection.execute(
                "update auth.refresh_tokens set revoked = true where session_id = "
                "(select session_id from auth.refresh_tokens where token = $1)",
                token,
            )
            raise RefreshTokenError(used=used != "UPDATE 0")

    async def session_exists(self, session_id: UUID) -> bool:
        """Return whether the session is still open."""
        return bool(await self._pool.fetchval("select true from auth.sessions where id = $1", session_id))

    async def sign_out(self, user_id: UUID, session_id: UUID | None, scope: str) -> None:
        """End the user's sessions: this one (``local``), all others (``others``) or all (``global``)."""
        await self._pool.execute(
            """
            delete from auth.sessions
             where user_id = $1
               and case $3::text
                     when 'local' then id = $2
                     when 'others' then id is distinct from $2
                     else true
                   end
            """,
            user_id,
            session_id,
            scope,
        )


def _removed(metadata: Mapping[str, Any] | None) -> list[str]:
    return [key for key, value in (metadata or {}).items() if value is None]


async def _new_refresh_token(connection: Any, session_id: UUID) -> str:
    token = secrets.token_urlsafe(18)
    await connection.execute(
        "insert into auth.refresh_tokens (token, session_id) values ($1, $2)", token, session_id
    )
    return token


async def hash_password(password: str) -> str:
    """Return a salted hash that ``_matches`` understands, computed in a thread."""
    salt = secrets.token_bytes(16)
    digest = await asyncio.to_thread(hashlib.scrypt, password.encode(), salt=salt, **SCRYPT)
    return f"scrypt${salt.hex()}${digest.hex()}"


async def _matches(password: str, stored: str) -> bool:
    scheme, _, rest = stored.partition("$")
    if scheme != "scrypt":
        return False
    salt, _, digest = rest.partition("$")
    found = await asyncio.to_thread(hashlib.scrypt, password.encode(), salt=bytes.fromhex(salt), **SCRYPT)
    return hmac.compare_digest(found, bytes.fromhex(digest))


def as_gotrue(row: asyncpg.Record) -> dict[str, Any]:
    """Return the user as GoTrue shows it; the identity is not stored, it follows from the address."""
    user_id, email = str(row["id"]), row["email"]
    created, updated = _iso(row["created_at"]), _iso(row["updated_at"])
    confirmed, signed_in = _iso(row["email_confirmed_at"]), _iso(row["last_sign_in_at"])
    identity = {
        "identity_id": user_id,
        "id": user_id,
        "user_id": user_id,
        "identity_data": {"email": email, "email_verified": True, "phone_verified": False, "sub": user_id},
        "provider": "email",
        "last_sign_in_at": signed_in,
        "created_at": created,
        "updated_at": updated,
        "email": email,
    }
    return {
        "id": user_id,
        "aud": row["aud"],
        "role": row["role"],
        "email": email or "",
        "phone": "",
        "email_confirmed_at": confirmed,
        "confirmed_at": confirmed,
        "last_sign_in_at": signed_in,
        "app_metadata": json.loads(row["raw_app_meta_data"]),
        "user_metadata": json.loads(row["raw_user_meta_data"]),
        "identities": [identity] if email else [],
        "created_at": created,
        "updated_at": updated,
        "is_anonymous": row["is_anonymous"],
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
