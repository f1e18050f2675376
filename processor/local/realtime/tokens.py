"""Tokens as Realtime sees them: a role and an end are required, and refusals have its words."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass

from processor.local.jwt import Claims, Jwt, JwtError


class TokenError(Exception):
    """A token that Realtime refuses; ``code`` is Realtime's name for the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who a channel acts for: the token as given, and what it says until ``expires_at`` (epoch seconds)."""

    token: str
    claims: Claims
    expires_at: float


def bearer(jwt: Jwt, token: str) -> Bearer:
    """Verify ``token``.

    Raises:
        TokenError: it is malformed, wrongly signed, expired, or has no ``role`` or ``exp``.

    """
    try:
        claims = jwt.verify(token)
    except JwtError as error:
        raise _refusal(token, error) from error
    if claims.exp is None:
        raise TokenError("InvalidJWTToken", "Fields `role` and `exp` are required in JWT")
    return Bearer(token, claims, claims.exp)


def expired(expires_at: float) -> str:
    """Say how long ago a token ended."""
    return f"Token has expired {max(0, int(time.time() - expires_at))} seconds ago"


def _refusal(token: str, error: JwtError) -> TokenError:
    """Find Realtime's words for what the shared verification found wrong."""
    claims = _peek(token)
    if claims is None:
        return TokenError("MalformedJWT", "The token provided is not a valid JWT")
    if error.code == "PGRST301":
        return TokenError("JwtSignatureError", "Failed to validate JWT signature")
    exp = claims.get("exp")
    if isinstance(exp, int | float) and exp <= time.time():
        return TokenError("InvalidJWTToken", expired(exp))
    if "role" not in claims or exp is None:
        return TokenError("InvalidJWTToken", "Fields `role` and `exp` are required in JWT")
    return TokenError("InvalidJWTToken", error.message)


def _peek(token: str) -> dict[str, object] | None:
    """Read the claims of a token without trusting them, only to name what is wrong."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
    except ValueError:
        return None
    return claims if isinstance(claims, dict) else None
