"""Broadcasts over HTTP: several messages at once, or one whose topic and event are in the path."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from processor.local.jwt import Jwt
from processor.local.realtime.permissions import Permissions
from processor.local.realtime.tokens import Bearer, TokenError, bearer
from processor.local.realtime.topics import Topics
from processor.local.realtime.wire import Broadcast


class BroadcastApi:
    """The endpoints below ``/realtime/v1/api``."""

    def __init__(self, jwt: Jwt, topics: Topics, permissions: Permissions) -> None:
        self._jwt = jwt
        self._topics = topics
        self._permissions = permissions

    def routes(self) -> list[Route]:
        """Return the endpoints."""
        base = "/realtime/v1/api/broadcast"
        return [
            Route(base, self._messages, methods=["POST"]),
            Route(f"{base}/{{topic:path}}/events/{{event:path}}", self._message, methods=["POST"]),
        ]

    async def _messages(self, request: Request) -> Response:
        caller = self._caller(request)
        if isinstance(caller, Response):
            return caller
        try:
            body = json.loads(await request.body())
        except ValueError:
            return JSONResponse({"message": "the body must be JSON"}, status_code=400)
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not messages:
            return JSONResponse({"errors": {"messages": ["can't be blank"]}}, status_code=422)
        problems = [_problems(message) for message in messages]
        if any(problems):
            return JSONResponse({"errors": {"messages": problems}}, status_code=422)
        for message in messages:
            private = message.get("private") is True
            if private and not await self._may_send(caller, message["topic"]):
                continue  # as the hosted server: accepted, and heard by nobody
            payload = {"type": "broadcast", "event": message["event"], "payload": message["payload"]}
            if message.get("id") is not None:
                payload["meta"] = {"id": message["id"]}
            self._topics.broadcast((message["topic"], private), payload)
        return Response(status_code=202)

    async def _message(self, request: Request) -> Response:
        caller = self._caller(request)
        if isinstance(caller, Response):
            return caller
        topic, event = request.path_params["topic"], request.path_params["event"]
        private = request.query_params.get("private") == "true"
        if private and not await self._may_send(caller, topic):
            return Response(status_code=202)
        body = await request.body()
        if request.headers.get("content-type", "").startswith("application/octet-stream"):
            self._topics.broadcast((topic, private), Broadcast(event, body, is_json=False))
            return Response(status_code=202)
        try:
            payload = json.loads(body)
        except ValueError:
            return JSONResponse({"message": "the body must be JSON"}, status_code=400)
        self._topics.broadcast((topic, private), {"type": "broadcast", "event": event, "payload": payload})
        return Response(status_code=202)

    async def _may_send(self, caller: Bearer, topic: str) -> bool:
        return "broadcast" in (await self._permissions.of(caller, topic)).write

    def _caller(self, request: Request) -> Bearer | Response:
        """Return who calls, or the refusal."""
        authorization = request.headers.get("authorization", "")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip() or token.strip().startswith("sb_"):
            token = request.headers.get("apikey", "")
        try:
            return bearer(self._jwt, token.strip())
        except TokenError as error:
            return JSONResponse({"message": error.message}, status_code=401)


def _problems(message: Any) -> dict[str, list[str]]:
    if not isinstance(message, dict):
        return {"message": ["is invalid"]}
    wanted = {"topic": str, "event": str, "payload": dict}
    return {
        name: ["can't be blank" if message.get(name) is None else "is invalid"]
        for name, kind in wanted.items()
        if not isinstance(message.get(name), kind)
    }
