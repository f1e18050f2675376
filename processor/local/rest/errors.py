"""PostgREST's errors: bodies ``{code, message, details, hint}`` and the statuses they come with."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
from starlette.responses import Response

# What PostgREST answers for a SQLSTATE, by its whole code or its class; everything else is 400.
STATUS_BY_SQLSTATE = {
    "08": 503, "09": 500, "0L": 403, "0P": 403, "21": 500, "23503": 409, "23505": 409, "25": 500,
    "25006": 405, "28": 403, "2D": 500, "38": 500, "39": 500, "3B": 500, "40": 500, "42883": 404,
    "42P01": 404, "42P17": 500, "53": 503, "53400": 500, "54": 500, "55": 500, "57": 500, "57P01": 503,
    "58": 500, "F0": 500, "HV": 500, "P0": 500, "P0001": 400, "XX": 500,
}  # fmt: skip


class RestError(Exception):
    """A request that is answered with an error.

    Args:
        status: of the response.
        code: PostgREST's code (``PGRST…``) or a SQLSTATE; None where the key check in front of it answers.
        message: one sentence about what happened.
        details: what exactly, often with the value.
        hint: what to do about it.
        headers: further headers of the response.

    """

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        details: str | None = None,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.hint = hint
        self.headers = headers or {}

    def response(self) -> Response:
        """Return the response, body as PostgREST writes it."""
        body: dict[str, Any] = {
            "code": self.code,
            "details": self.details,
            "hint": self.hint,
            "message": self.message,
        }
        headers = dict(self.headers)
        if self.code is None:
            body = {"message": self.message, "hint": self.hint}
        else:
            # clients read the code from here where there is no body (HEAD)
            headers["Proxy-Status"] = f"PostgREST; error={self.code}"
        if self.status == 401:
            headers.setdefault("WWW-Authenticate", "Bearer")
        return Response(
            json.dumps(body, ensure_ascii=False, separators=(",", ":")),
            status_code=self.status,
            headers=headers,
            media_type="application/json; charset=utf-8",
        )


def unreadable(what: str, text: str, position: int, details: str) -> RestError:
    """Say that part ``what`` of the query string cannot be parsed; ``position`` counts from 0."""
    return RestError(
        400,
        "PGRST100",
        f'"failed to parse {what} ({text})" (line 1, column {position + 1})',
        details=details,
    )


def unsupported(details: str) -> RestError:
    """Say that PostgREST knows this, but the local gateway does not."""
    return RestError(
        400,
        "PGRST127",
        "Feature not implemented",
        details=f"The local gateway does not support {details}.",
        hint="Use a function (rpc) instead, or test this against a Supabase project.",
    )


def no_column(relation: str, column: str) -> RestError:
    """Say in PostgreSQL's words that a column named in a filter does not exist."""
    return RestError(400, "42703", f"column {relation}.{column} does not exist")


def from_postgres(error: asyncpg.PostgresError, *, anonymous: bool) -> RestError:
    """Translate what PostgreSQL raised.

    Args:
        error: as asyncpg raised it.
        anonymous: whether the caller is nobody in particular, who may still authenticate (42501 → 401).

    """
    sqlstate = error.sqlstate or "XX000"
    message = error.message or str(error)
    if sqlstate == "PGRST":
        return _raised_response(message, error.detail)
    if sqlstate.startswith("PT") and sqlstate[2:].isdigit():
        status = int(sqlstate[2:])
        status = status if 100 <= status <= 599 else 500
    elif sqlstate == "42501":
        status = 401 if anonymous else 403
    elif sqlstate == "21000" and message.endswith("requires a WHERE clause"):
        status = 400
    elif sqlstate == "22023" and message.startswith("role") and message.endswith("does not exist"):
        status = 401
    else:
        status = STATUS_BY_SQLSTATE.get(sqlstate) or STATUS_BY_SQLSTATE.get(sqlstate[:2], 400)
    return RestError(status, sqlstate, message, details=error.detail, hint=error.hint)


def _raised_response(message: str, detail: str | None) -> RestError:
    """Obey ``raise sqlstate 'PGRST'``: the body is in MESSAGE, status and headers are in DETAIL."""
    try:
        body, control = json.loads(message), json.loads(detail or "")
        return RestError(
            int(control["status"]),
            str(body["code"]),
            str(body["message"]),
            details=body.get("details"),
            hint=body.get("hint"),
            headers={str(name): str(value) for name, value in control["headers"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return RestError(
            500,
            "PGRST121",
            "Could not parse JSON in the \"RAISE SQLSTATE 'PGRST'\" error",
            details=f"MESSAGE: {message} DETAIL: {detail}",
            hint="MESSAGE must be a JSON object with the keys 'code' and 'message' (optional: 'details', "
            "'hint'), DETAIL one with 'status' and 'headers'.",
        )
