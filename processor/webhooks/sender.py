"""One webhook on its way: signed after the Standard Webhooks specification, sent once, and what came back."""

import asyncio
import binascii
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import httpcore
import httpx
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from processor import __version__
from processor.errors import ErrorCode, JobError
from processor.webhooks.guard import Destination, Guard, GuardedConnections, read_url

MOST_BODY = 16_384
"""Bytes of an answer that are read; then the connection is closed."""
_BODY_SECONDS = 2.0
"""How long somebody may take to send them: what counts, the status, is known by then."""
_EXCERPT = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said."""

    receiver: str
    """Who said it: the URL without its path."""
    status: int
    headers: Mapping[str, str]
    """By names in lower case."""
    excerpt: str
    """The beginning of its body, as text of one line."""


class Sender:
    """Sends webhooks, each by a connection of its own: to where the guard lets it, and to nobody else.

    No redirect is followed, no proxy of the environment asked, no answer unpacked. Certificates are judged by
    certifi's list, or by that of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._tls = httpx.create_ssl_context()

    async def send(
        self,
        url: str,
        message_id: str,
        body: bytes,
        secrets: Sequence[str],
        *,
        within: float,
        plain: bool = False,
    ) -> Answer:
        """Send a message, signed with every secret, and return the answer, whatever its status.

        Args:
            url: the endpoint's address.
            message_id: the same for each attempt of a message.
            body: what is signed and sent, as it is.
            secrets: ``whsec_…``: the current one, and those that still count.
            within: seconds until the head of the answer is there.
            plain: the URL may be http.

        Raises:
            JobError: it was not sent (WEBHOOK_REFUSED), or nobody answered as HTTP does.

        """
        destination = read_url(url, plain=plain)
        headers = {
            "Host": destination.authority,
            "User-Agent": f"supabase-job-processor/{__version__}",
            "Accept": "*/*",
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **signed(message_id, body, secrets),
        }
        try:
            async with asyncio.timeout(within) as limit:
                return await self._asked(destination, headers, body, within, limit)
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise JobError(
                f"{destination} did not answer within {within:g} s", code=ErrorCode.UPSTREAM_TIMEOUT
            ) from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            reason = _one_line(str(error)) or type(error).__name__
            raise JobError(
                f"{destination} cannot be asked: {reason}", code=ErrorCode.UPSTREAM_UNAVAILABLE
            ) from error

    async def _asked(
        self,
        destination: Destination,
        headers: dict[str, str],
        body: bytes,
        within: float,
        limit: asyncio.Timeout,
    ) -> Answer:
        url = httpcore.URL(
            scheme=destination.scheme, host=destination.host, port=destination.port, target=destination.target
        )
        limits = dict.fromkeys(("connect", "read", "write", "pool"), within)
        connections = GuardedConnections(self._guard, destination)
        async with (
            httpcore.AsyncConnectionPool(self._tls, network_backend=connections) as pool,
            pool.stream(
                "POST", url, headers=list(headers.items()), content=body, extensions={"timeout": limits}
            ) as answer,
        ):
            limit.reschedule(None)  # the status is known: the rest can only add to it
            excerpt = await _excerpt(answer)
            return Answer(str(destination), answer.status, _headers(answer), excerpt)


def signed(message_id: str, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """Return the three headers by which a receiver knows who sent a message, and when.

    Raises:
        JobError: WEBHOOK_REFUSED: there is no secret, or one that is none.

    """
    now = datetime.fromtimestamp(int(time.time()), UTC)
    text = body.decode()
    try:
        signatures = [Webhook(secret).sign(message_id, now, text) for secret in secrets]
    except (binascii.Error, EmptyWebhookSecretError):
        signatures = []  # the error's text may have the secret
    if not signatures:
        reason = "its secret is none of the form whsec_…: rotate it"
        raise JobError(f"the webhook is not sent: {reason}", code=ErrorCode.WEBHOOK_REFUSED, retryable=True)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def _headers(answer: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}


async def _excerpt(answer: httpcore.Response) -> str:
    """Read the beginning of the body, however long it is and however slowly it comes."""
    body = b""
    with contextlib.suppress(
        TimeoutError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError
    ):
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in answer.aiter_stream():
                body += chunk
                if len(body) >= MOST_BODY:
                    break
    return _one_line(body[:MOST_BODY].decode(errors="replace"))


def _one_line(text: str) -> str:
    """Make one line of a text, of what can be shown, and not too long."""
    words = " ".join(text.split())
    return "".join(character for character in words if character.isprintable())[:_EXCERPT]
