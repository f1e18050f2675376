"""A job's rows as its owner sees them: asked of the project with the caller's own token, so RLS decides."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import Any
from uuid import UUID

import httpx

from processor.web.marks import Mark

_TIMEOUT = httpx.Timeout(10, connect=5)
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""Whoever calls limits how many there are; the daemon's own calls have other connections."""
_OBJECT = {"Accept": "application/vnd.pgrst.object+json"}

_STATE = (
    "id,queue,kind,status,priority,attempt,max_attempts,run_at,created_at,started_at,finished_at,updated_at,"
    "cancel_requested_at,error_code,error_message,error_retryable,retry_of,parent_id,tags,result,"
    "progress,progress_message,items_total,items_done,items_failed,"
    "credits_held,credits_captured,credits_refunded"
)
_ITEM = "key,position,status,progress,attempts,credits,error_code,error_message,error_retryable,updated_at"
_LOG = "id,attempt,logged_at,level,message,fields"
_WHOLE = f"{_STATE},owner_id,payload,errors,failures,timeout,items:job_items({_ITEM},payload,result)"
_NEWS = f"{_STATE},items:job_items({_ITEM}),logs:job_logs({_LOG})"

PAGE = 500
"""Items, and log lines, that one look brings; a project may be set to give fewer."""


class Refusal(Exception):  # noqa: N818  what callers are told, in HTTP's sense of the word
    """Why the caller does not get it: an HTTP status, a stable code, and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message}

    @property
    def passes(self) -> bool:
        """Whether asking again, a little later, may help."""
        return self.status == HTTPStatus.SERVICE_UNAVAILABLE


class JobRows:
    """Reads jobs from a project's REST API.

    :param url: the project's
    :param key: its publishable key, which says which project it is, and gives no right to any job
    """

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=f"{url}/rest/v1", headers={"apikey": key, **_OBJECT}, timeout=_TIMEOUT, limits=_LIMITS
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def whole(self, job_id: UUID, token: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open the row with its items, as JSON in pieces: results may be large.

        Raises:
            Refusal: the token is not accepted, there is no such job for it, or the API is away.

        """
        query = {"id": f"eq.{job_id}", "select": _WHOLE, "items.order": "position"}
        request = self._http.build_request("GET", "/jobs", params=query, headers=_bearer(token))
        try:
            answer = await self._http.send(request, stream=True)
        except httpx.HTTPError as error:
            raise _away(error) from error
        async with aclosing(answer):
            if not answer.is_success:
                await answer.aread()
                raise _refusal(answer)
            yield answer.aiter_bytes()

    async def news(self, job_id: UUID, token: str, since: Mark) -> dict[str, Any]:
        """Return the row, and of ``items`` and ``logs`` the next ones after a mark, in the mark's order.

        It is one statement of the database, hence one moment of the job.

        Raises:
            Refusal: the token is not accepted, there is no such job for it, or the API is away.

        """
        item_at = f'"{since.item_at.isoformat()}"'
        query = {
            "id": f"eq.{job_id}",
            "select": _NEWS,
            "items.or": f"(updated_at.gt.{item_at},and(updated_at.eq.{item_at},position.gt.{since.item}))",
            "items.order": "updated_at,position",
            "items.limit": str(PAGE),
            "logs.id": f"gt.{since.log}",
            "logs.order": "id",
            "logs.limit": str(PAGE),
        }
        try:
            answer = await self._http.get("/jobs", params=query, headers=_bearer(token))
        except httpx.HTTPError as error:
            raise _away(error) from error
        if not answer.is_success:
            raise _refusal(answer)
        try:
            row: dict[str, Any] = answer.json()
        except (ValueError, RecursionError) as error:
            raise Refusal(502, "API_UNREADABLE", "the project's API did not answer with JSON") from error
        return row


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _away(error: httpx.HTTPError) -> Refusal:
    return Refusal(
        503, "API_UNAVAILABLE", f"the project's API does not answer ({type(error).__name__}): try again soon"
    )


def _refusal(answer: httpx.Response) -> Refusal:
    """Say what an answer of the REST API means to whoever asked us."""
    try:
        body = json.loads(answer.content)
    except (ValueError, RecursionError):
        body = None
    body = body if isinstance(body, dict) else {}
    message = str(body.get("message") or answer.reason_phrase)
    status = answer.status_code
    if status == HTTPStatus.UNAUTHORIZED:
        code = "TOKEN_EXPIRED" if "expired" in message.lower() else "TOKEN_REFUSED"
        return Refusal(401, code, f"the access token was not accepted: {message}")
    if status == HTTPStatus.FORBIDDEN:
        return Refusal(403, "TOKEN_REFUSED", f"this token's role may not read jobs: {message}")
    if body.get("code") == "PGRST116":
        return Refusal(404, "JOB_NOT_FOUND", "there is no such job, or it is somebody else's")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in {408, 425, 429}:
        return Refusal(503, "API_UNAVAILABLE", f"the project's API answered {status}: try again soon")
    return Refusal(502, "API_UNREADABLE", f"the project's API answered {status}: {message}")
