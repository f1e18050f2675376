"""The part of Supabase Auth that applications sign in with: ``/auth/v1``.

Sign-up (confirmed at once, also anonymous), password and refresh grants, the signed-in user, log-out, and the
administrator's users. Bodies, status codes and error codes are those of GoTrue, so the official clients work
unmodified. There is no mail, no phone, no OAuth and no MFA.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from processor.local.context import GatewayContext
from processor.local.jwt import Claims, JwtError
from processor.local.users import EmailTakenError, RefreshTokenError, Users, as_gotrue

ACCESS_TOKEN_SECONDS = 3600
SHORTEST_PASSWORD = 6
LONGEST_PASSWORD = 72
EMAIL = re.compile(r"[^@\s]+@[^@\s]+")


class AuthError(Exception):
    """An answer in GoTrue's form: HTTP status, stable code, message, and further members of the body."""

    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": status, "error_code": code, "msg": message, **more}


class Auth:
    """The endpoints of ``/auth/v1``; between ``start`` and ``stop`` it holds a few database connections."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._jwt = context.jwt
        self._pool: asyncpg.Pool | None = None

    async def start(self) -> None:
        """Connect."""
        self._pool = await asyncpg.create_pool(self._context.admin_dsn, min_size=1, max_size=4)

    async def stop(self) -> None:
        """Disconnect."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    def routes(self) -> list[Route]:
        """Return the routes, with their full paths."""

        def route(path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str) -> Route:
            return Route(f"/auth/v1{path}", _answering(endpoint), methods=[method])

        return [
            route("/health", self._health, "GET"),
            route("/settings", self._settings, "GET"),
            route("/signup", self._sign_up, "POST"),
            route("/token", self._token, "POST"),
            route("/user", self._get_user, "GET"),
            route("/user", self._put_user, "PUT"),
            route("/logout", self._log_out, "POST"),
            route("/admin/users", self._admin_create, "POST"),
            route("/admin/users", self._admin_list, "GET"),
            route("/admin/users/{id}", self._admin_get, "GET"),
            route("/admin/users/{id}", self._admin_update, "PUT"),
            route("/admin/users/{id}", self._admin_delete, "DELETE"),
        ]

    @property
    def _users(self) -> Users:
        assert self._pool is not None  # noqa: S101 - routes are served between start and stop
        return Users(self._pool)

    # Everybody --------------------------------------------------------------------------------------------

    async def _health(self, _request: Request) -> Response:
        return JSONResponse(
            {"name": "GoTrue", "version": "local", "description": "local mode of the job processor"}
        )

    async def _settings(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "external": {"anonymous_users": True, "email": True, "phone": False},
                "disable_signup": False,
                "mailer_autoconfirm": True,
                "phone_autoconfirm": False,
                "sms_provider": "",
                "saml_enabled": False,
            }
        )

    async def _sign_up(self, request: Request) -> Response:
        body = await _body(request)
        if body.get("phone"):
            raise AuthError(400, "phone_provider_disabled", "Phone signups are disabled")
        metadata = _object(body, "data")
        if not body.get("email") and not body.get("password"):
            user = await self._users.create(None, None, user_metadata=metadata, app_metadata={})
            return await self._open_session(request, user, "anonymous")
        email, password = _email(body), _password(body)
        try:
            user = await self._users.create(
                email, password, user_metadata=metadata, app_metadata=_email_provider()
            )
        except EmailTakenError as error:
            raise AuthError(422, "user_already_exists", "User already registered") from error
        return await self._open_session(request, user, "password")

    async def _token(self, request: Request) -> Response:
        grant = request.query_params.get("grant_type", "")
        body = await _body(request)
        if grant == "password":
            email, password = str(body.get("email") or "").lower(), str(body.get("password") or "")
            user = await self._users.by_password(email, password)
            if user is None:
                raise AuthError(400, "invalid_credentials", "Invalid login credentials")
            return await self._open_session(request, user, "password")
        if grant == "refresh_token":
            token = body.get("refresh_token")
            if not isinstance(token, str) or not token:
                raise AuthError(400, "validation_failed", "Refresh token is not valid")
            return await self._refresh(request, token)
        raise AuthError(400, "unsupported_grant_type", f"unsupported_grant_type: {grant!r}")

    async def _refresh(self, request: Request, token: str) -> Response:
        try:
            user, session, next_token = await self._users.refresh(token)
        except RefreshTokenError as error:
            if error.used:
                raise AuthError(
                    400, "refresh_token_already_used", "Invalid Refresh Token: Already Used"
                ) from error
            raise AuthError(
                400, "refresh_token_not_found", "Invalid Refresh Token: Refresh Token Not Found"
            ) from error
        return JSONResponse(self._session(request, user, session, next_token, "token_refresh"))

    async def _open_session(self, request: Request, user: asyncpg.Record, method: str) -> Response:
        opened = await self._users.sign_in(user["id"])
        if opened is None:  # deleted in the meantime
            raise AuthError(400, "invalid_credentials", "Invalid login credentials")
        signed_in, session, refresh_token = opened
        return JSONResponse(self._session(request, signed_in, session, refresh_token, method))

    def _session(
        self, request: Request, row: asyncpg.Record, session: UUID, refresh_token: str, method: str
    ) -> dict[str, Any]:
        now = int(time.time())
        user = as_gotrue(row)
        access_token = self._jwt.sign(
            {
                "iss": f"{request.url.scheme}://{request.url.netloc}/auth/v1",
                "sub": user["id"],
                "aud": user["aud"],
                "exp": now + ACCESS_TOKEN_SECONDS,
                "iat": now,
                "email": user["email"],
                "phone": user["phone"],
                "app_metadata": user["app_metadata"],
                "user_metadata": user["user_metadata"],
                "role": user["role"],
                "aal": "aal1",
                "amr": [{"method": method, "timestamp": now}],
                "session_id": str(session),
                "is_anonymous": user["is_anonymous"],
            }
        )
        return {
            "access_token": access_token,
            "token_type": "bearer",
            "expires_in": ACCESS_TOKEN_SECONDS,
            "expires_at": now + ACCESS_TOKEN_SECONDS,
            "refresh_token": refresh_token,
            "user": user,
        }

    # The signed-in user -----------------------------------------------------------------------------------

    async def _get_user(self, request: Request) -> Response:
        user, _ = await self._signed_in(request)
        return JSONResponse(as_gotrue(user))

    async def _put_user(self, request: Request) -> Response:
        user, _ = await self._signed_in(request)
        body = await _body(request)
        # app_metadata is what applications trust: a user's own is ignored
        return await self._update(user["id"], body, _object(body, "data"), {})

    async def _update(
        self,
        user_id: UUID,
        body: dict[str, Any],
        user_metadata: dict[str, Any],
        app_metadata: dict[str, Any],
    ) -> Response:
        email = _email(body) if body.get("email") else None
        try:
            updated = await self._users.update(
                user_id,
                email=email,
                password=_password(body) if body.get("password") else None,
                user_metadata=user_metadata,
                # an anonymous user who gets an address becomes one that signs in with it
                app_metadata=app_metadata | (_email_provider() if email else {}),
            )
        except EmailTakenError as error:
            raise _email_exists() from error
        if updated is None:
            raise AuthError(404, "user_not_found", "User not found")
        return JSONResponse(as_gotrue(updated))

    async def _log_out(self, request: Request) -> Response:
        user, session = await self._signed_in(request)
        scope = request.query_params.get("scope", "global")
        if scope not in {"global", "local", "others"}:
            raise AuthError(400, "validation_failed", f"Unsupported logout scope {scope!r}")
        await self._users.sign_out(user["id"], session, scope)
        return Response(status_code=204)

    async def _signed_in(self, request: Request) -> tuple[asyncpg.Record, UUID | None]:
        claims = self._claims(request)
        if claims.sub is None:
            raise AuthError(403, "bad_jwt", "invalid claim: missing sub claim")
        user = await self._users.get(
            _uuid(claims.sub, AuthError(403, "bad_jwt", "invalid claim: sub is no UUID"))
        )
        if user is None:
            raise AuthError(403, "user_not_found", "User from sub claim in JWT does not exist")
        named = claims.raw.get("session_id")
        if named is None:
            return user, None
        session = _uuid(str(named), AuthError(403, "bad_jwt", "invalid claim: session_id is no UUID"))
        if not await self._users.session_exists(session):
            raise AuthError(403, "session_not_found", "Session from session_id claim in JWT does not exist")
        return user, session

    def _claims(self, request: Request) -> Claims:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
        try:
            return self._jwt.verify(token.strip())
        except JwtError as error:
            message = f"invalid JWT: unable to parse or verify signature, {error.message}"
            raise AuthError(403, "bad_jwt", message) from error

    # The administrator ------------------------------------------------------------------------------------

    def _require_admin(self, request: Request) -> None:
        if self._claims(request).role not in {"service_role", "supabase_admin"}:
            raise AuthError(403, "not_admin", "User not allowed")

    async def _admin_create(self, request: Request) -> Response:
        self._require_admin(request)
        body = await _body(request)
        try:
            user = await self._users.create(
                _email(body),
                _password(body) if body.get("password") else None,
                user_metadata=_object(body, "user_metadata"),
                app_metadata=_object(body, "app_metadata") | _email_provider(),
            )
        except EmailTakenError as error:
            raise _email_exists() from error
        return JSONResponse(as_gotrue(user))

    async def _admin_list(self, request: Request) -> Response:
        self._require_admin(request)
        page, size = _whole(request, "page", 1), _whole(request, "per_page", 50)
        users, total = await self._users.page(page, size)
        return JSONResponse(
            {"users": [as_gotrue(user) for user in users], "aud": "authenticated"},
            headers={"x-total-count": str(total)},
        )

    async def _admin_get(self, request: Request) -> Response:
        user_id = self._admin_target(request)
        user = await self._users.get(user_id)
        if user is None:
            raise AuthError(404, "user_not_found", "User not found")
        return JSONResponse(as_gotrue(user))

    async def _admin_update(self, request: Request) -> Response:
        user_id = self._admin_target(request)
        body = await _body(request)
        return await self._update(
            user_id, body, _object(body, "user_metadata"), _object(body, "app_metadata")
        )

    async def _admin_delete(self, request: Request) -> Response:
        if not await self._users.delete(self._admin_target(request)):
            raise AuthError(404, "user_not_found", "User not found")
        return JSONResponse({})

    def _admin_target(self, request: Request) -> UUID:
        self._require_admin(request)
        return _uuid(
            request.path_params["id"], AuthError(404, "validation_failed", "user_id must be an UUID")
        )


def _answering(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except AuthError as error:
            return JSONResponse(error.body, status_code=error.status)

    return answer


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError as error:
        raise AuthError(400, "bad_json", f"Could not parse request body as JSON: {error}") from error
    if not isinstance(body, dict):
        raise AuthError(400, "bad_json", "Could not parse request body as JSON: an object is needed")
    return body


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AuthError(400, "validation_failed", f"{name} must be an object")
    return value


def _email(body: dict[str, Any]) -> str:
    email = body.get("email")
    if not isinstance(email, str) or not EMAIL.fullmatch(email):
        raise AuthError(400, "validation_failed", "Unable to validate email address: invalid format")
    return email.lower()


def _password(body: dict[str, Any]) -> str:
    password = body.get("password")
    if not isinstance(password, str) or not password:
        raise AuthError(400, "validation_failed", "Signup requires a valid password")
    if len(password) < SHORTEST_PASSWORD:
        message = f"Password should be at least {SHORTEST_PASSWORD} characters."
        raise AuthError(422, "weak_password", message, weak_password={"reasons": ["length"]})
    if len(password.encode()) > LONGEST_PASSWORD:
        raise AuthError(
            400, "validation_failed", f"Password cannot be longer than {LONGEST_PASSWORD} characters"
        )
    return password


def _uuid(text: str, otherwise: AuthError) -> UUID:
    try:
        return UUID(text)
    except ValueError as error:
        raise otherwise from error


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return max(1, int(text)) if text.isdecimal() and len(text) < 7 else default


def _email_exists() -> AuthError:
    return AuthError(422, "email_exists", "A user with this email address has already been registered")


def _email_provider() -> dict[str, Any]:
    return {"provider": "email", "providers": ["email"]}
