"""What the API's refusals mean: an HTTP status and a body → an error of :mod:`processor.errors`."""

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn

from postgrest.exceptions import APIError

from processor.errors import SQLSTATES, ApiError, ApiUnreachable, AuthFailed, SchemaMissing

if TYPE_CHECKING:
    from processor.transport import Answer

# the database or a proxy before it is away for the moment; 57014 is a statement that took too long
_AWAY = ("PGRST000", "PGRST001", "PGRST002", "PGRST003", "408", "425", "429")
_TRANSIENT = ("08", "40", "53", "55", "57P", "57014", "58", "XX")


def refused(url: str, function: str, answer: "Answer") -> NoReturn:
    """Raise what it means that ``function`` was answered with this ``answer``, which is no success."""
    error = _problem(answer)
    code = error.code or ""
    message = error.message or "the API gave no reason"
    detail = str(error.details) if error.details and code.startswith(("JQ", "PT")) else None
    if code in SQLSTATES:
        raise SQLSTATES[code](message, code=code, detail=detail, hint=error.hint) from error
    if code in {"PGRST301", "PGRST302", "PGRST303", "401", "403", "42501"} or "api key" in message.lower():
        raise AuthFailed(
            f"{url} refused the key: {message}",
            code=code or None,
            hint="Check SUPABASE_SERVICE_ROLE_KEY: it must be this project's service_role (or secret) key, "
            "and not expired.",
        ) from error
    if code in {"PGRST202", "42883"}:
        raise SchemaMissing(
            f"{url} has no function {function}",
            code=code,
            hint="Install the schema: processor schema apply --database-url postgresql://… "
            "or paste the output of `processor schema print` into the SQL editor.",
        ) from error
    status = int(code) if len(code) == 3 and code.isdecimal() else 0
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or is_transient(code):
        raise ApiUnreachable(
            f"{url} cannot serve requests now: {message}", code=code, hint="Is its database running?"
        ) from error
    if code in {"404", "405"}:
        raise ApiUnreachable(
            f"{url} is not the address of a Supabase project: it answered {code}",
            hint="Check SUPABASE_URL: it must look like https://abcdefgh.supabase.co",
        ) from error
    raise ApiError(f"{function}: {message}", code=code or None, detail=detail, hint=error.hint) from error


def is_transient(code: str) -> bool:
    """Say whether an SQLSTATE, a PGRST code or a status of 4xx means trouble of the moment."""
    status = len(code) == 3 and code.isdecimal()
    return code in _AWAY or (not status and code.startswith(_TRANSIENT))


def _problem(answer: "Answer") -> APIError:
    """Read PostgREST's error, or what something before it says: the HTTP status is the code then."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        body = None
    body = body if isinstance(body, dict) else {}
    if isinstance(body.get("code"), str):
        return APIError(body)
    message = body.get("message") or body.get("msg") or body.get("error")
    return APIError({"message": str(message or answer.reason), "code": str(answer.status)})
