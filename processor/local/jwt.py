"""Sign and verify the HS256 tokens of a Supabase project."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt

CACHED_TOKENS = 1024


class JwtError(Exception):
    """A token that is not accepted.

    ``code`` and ``message`` are the ones PostgREST answers with: ``PGRST301`` when the token cannot be
    decoded or its signature is wrong, ``PGRST303`` when its claims do not hold (expired, not yet valid, no
    role).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says.

    ``json`` is the text that ``request.jwt.claims`` is set to, made once per token.
    """

    role: str
    sub: str | None
    exp: float | None
    raw: Mapping[str, Any] = field(repr=False)
    json: str = field(repr=False)


class Jwt:
    """Sign and verify tokens with one shared secret.

    Verified tokens are remembered (at most 1024, the oldest go first), since an application sends the same
    one with every request; a remembered token still expires on time.
    """

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self._verified: dict[str, Claims] = {}

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Make a token of ``claims``, as they are; times are seconds since the epoch."""
        return jwt.encode(dict(claims), self.secret, algorithm="HS256")

    def verify(self, token: str) -> Claims:
        """Return the claims of ``token``.

        Raises:
            JwtError: the token is malformed, signed by another key, expired, not yet valid or without a role.

        """
        claims = self._verified.get(token)
        if claims is None:
            claims = self._decode(token)
            if len(self._verified) >= CACHED_TOKENS:
                del self._verified[next(iter(self._verified))]
            self._verified[token] = claims
        elif claims.exp is not None and claims.exp <= time.time():
            del self._verified[token]
            raise JwtError("PGRST303", "JWT expired")
        return claims

    def _decode(self, token: str) -> Claims:
        parts = token.count(".") + 1
        if parts != 3:
            raise JwtError("PGRST301", f"Expected 3 parts in JWT; got {parts}")
        try:
            # a project's API accepts any audience; Auth tokens carry "authenticated", the API keys none
            raw = jwt.decode(token, self.secret, algorithms=["HS256"], options={"verify_aud": False})
        except jwt.ExpiredSignatureError as error:
            raise JwtError("PGRST303", "JWT expired") from error
        except jwt.ImmatureSignatureError as error:
            raise JwtError("PGRST303", "JWT not yet valid") from error
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError) as error:
            raise JwtError("PGRST301", "No suitable key or wrong key type") from error
        except jwt.DecodeError as error:
            raise JwtError("PGRST301", f"JWT couldn't be decoded: {error}") from error
        except jwt.InvalidTokenError as error:
            raise JwtError("PGRST303", f"JWT claims validation failed: {error}") from error
        role, sub, exp = raw.get("role"), raw.get("sub"), raw.get("exp")
        if not isinstance(role, str) or not role:
            raise JwtError("PGRST303", "JWT has no claim 'role'")
        return Claims(
            role=role,
            sub=sub if isinstance(sub, str) else None,
            exp=None if exp is None else float(exp),
            raw=raw,
            json=json.dumps(raw, separators=(",", ":")),
        )
