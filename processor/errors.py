"""Every error of this package, and the stable codes that failed jobs carry.

::

    ProcessorError
    ├── UsageError               a mistake in a declaration, found at import
    ├── ConfigError              a setting that is missing or makes no sense
    ├── ResourceFailed           something that handlers share could not be started
    ├── JobError                 raised by handlers: a failure with a code of its own
    └── ApiError                 the API said no, or said nothing
        ├── ApiUnreachable       no answer, or an answer from something in between
        ├── AuthFailed           the key was refused
        ├── SchemaMissing        the project does not have the jobs schema
        ├── SchemaMismatch       JQ013: it has another version of it
        ├── UnknownKind          JQ001
        ├── UnknownQueue         JQ002
        ├── InvalidPayload       JQ003
        ├── PayloadTooLarge      JQ004
        ├── InvalidItems         JQ005
        ├── InvalidArgument      JQ006
        ├── IdempotencyConflict  JQ007
        ├── JobNotFound          JQ008
        ├── InvalidState         JQ009
        ├── NotAllowed           JQ010
        ├── WorkerUnknown        JQ011
        ├── UniqueConflict       JQ012
        ├── TooManyPending       JQ014
        ├── OperatorsOnly        JQ015
        └── InsufficientCredits  PT402
"""

# The names say what happened; an "Error" behind each of them would add nothing.
# ruff: noqa: N818

import difflib
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

_CODE = re.compile(r"[A-Z][A-Z0-9_]{1,63}")


class ErrorCode(StrEnum):
    """The codes this package puts on failed jobs and items; handlers may add their own."""

    UPSTREAM_TIMEOUT = "UPSTREAM_TIMEOUT"
    UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    UPSTREAM_INVALID = "UPSTREAM_INVALID"
    UPSTREAM_REJECTED = "UPSTREAM_REJECTED"
    RATE_LIMITED = "RATE_LIMITED"
    AUTH_FAILED = "AUTH_FAILED"
    INVALID_PAYLOAD = "INVALID_PAYLOAD"
    INVALID_RESULT = "INVALID_RESULT"
    HANDLER_TIMEOUT = "HANDLER_TIMEOUT"
    HANDLER_CRASHED = "HANDLER_CRASHED"
    OUT_OF_RESOURCES = "OUT_OF_RESOURCES"
    LEASE_LOST = "LEASE_LOST"
    WORKER_CRASHED = "WORKER_CRASHED"
    RETRY_REQUESTED = "RETRY_REQUESTED"
    DISCARDED = "DISCARDED"
    ITEMS_FAILED = "ITEMS_FAILED"
    CHILD_FAILED = "CHILD_FAILED"
    CHILD_REFUSED = "CHILD_REFUSED"
    CHECKPOINT_REFUSED = "CHECKPOINT_REFUSED"
    INSUFFICIENT_CREDITS = "INSUFFICIENT_CREDITS"
    TOO_MANY_PENDING = "TOO_MANY_PENDING"
    CANCELLED = "CANCELLED"
    REPLACED = "REPLACED"
    WEBHOOK_REFUSED = "WEBHOOK_REFUSED"
    WEBHOOK_GONE = "WEBHOOK_GONE"

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed without anybody changing anything."""
        return MEANINGS[self].retryable


class Meaning(NamedTuple):
    """What a code says to whoever finds it on a job."""

    retryable: bool
    what: str
    advice: str


MEANINGS: dict[ErrorCode, Meaning] = {
    ErrorCode.UPSTREAM_TIMEOUT: Meaning(
        True,
        "something the handler asked did not answer in time",
        "nothing; if it lasts, give it more time or ask for less",
    ),
    ErrorCode.UPSTREAM_UNAVAILABLE: Meaning(
        True,
        "it could not be reached, broke off, or answered 5xx",
        "nothing; if it lasts, look at its status page and the network",
    ),
    ErrorCode.UPSTREAM_INVALID: Meaning(
        True,
        "its answer could not be read: no JSON, or not of the expected shape",
        "log the answer in the handler; ask in another way",
    ),
    ErrorCode.UPSTREAM_REJECTED: Meaning(
        False,
        "it refused the request for good: 4xx, a constraint, a redirect without end",
        "mend the request or its data, then retry the job",
    ),
    ErrorCode.RATE_LIMITED: Meaning(
        True,
        "it answered 429; `Retry-After` is honoured, up to an hour",
        "nothing; set the queue's rate_limit to what the upstream allows",
    ),
    ErrorCode.AUTH_FAILED: Meaning(
        False,
        "it refused the credentials: 401, 403, or its like",
        "renew the handler's key for it, then retry the job",
    ),
    ErrorCode.INVALID_PAYLOAD: Meaning(
        False,
        "the payload does not fit the handler's type",
        "mend whoever creates the job; the message names the fields",
    ),
    ErrorCode.INVALID_RESULT: Meaning(
        False,
        "what the handler returned cannot be stored, or makes no sense",
        "mend the handler; the message says why",
    ),
    ErrorCode.HANDLER_TIMEOUT: Meaning(
        True,
        "the handler took longer than the job's timeout",
        "raise the timeout of the handler, queue or job, or cut the job into items",
    ),
    ErrorCode.HANDLER_CRASHED: Meaning(
        True,
        "the handler raised an exception that nothing here knows",
        "read the traceback in the daemon's log; give it a code with `app.error`",
    ),
    ErrorCode.OUT_OF_RESOURCES: Meaning(
        True,
        "the worker's machine has no memory, disk, processes or files left",
        "look at the machine; fewer slots; another attempt may meet another machine",
    ),
    ErrorCode.LEASE_LOST: Meaning(
        True,
        "the worker went silent and others took the job over",
        "nothing; see the worker's log if it happens often",
    ),
    ErrorCode.WORKER_CRASHED: Meaning(
        False,
        "workers in a row died while running it, so it is what kills them",
        "look for a crash in C code or a lack of memory, then retry the job",
    ),
    ErrorCode.RETRY_REQUESTED: Meaning(
        True,
        "the handler raised Retry",
        "nothing",
    ),
    ErrorCode.DISCARDED: Meaning(
        False,
        "the handler raised Discard",
        "as its message says",
    ),
    ErrorCode.ITEMS_FAILED: Meaning(
        True,
        "some items did not complete; each has its own code",
        "look at job_items; retrying the job repeats only these",
    ),
    ErrorCode.CHILD_FAILED: Meaning(
        False,
        "a child did not complete, and the job was to fail with it",
        "look at the children; retry the job",
    ),
    ErrorCode.CHILD_REFUSED: Meaning(
        False,
        "a child that the handler wanted to spawn cannot be made",
        "mend the handler; the message says why",
    ),
    ErrorCode.CHECKPOINT_REFUSED: Meaning(
        False,
        "what a step came to cannot be stored",
        "mend the handler; the message says why",
    ),
    ErrorCode.INSUFFICIENT_CREDITS: Meaning(
        False,
        "the owner cannot pay for a child",
        "grant credits, then retry the job",
    ),
    ErrorCode.TOO_MANY_PENDING: Meaning(
        True,
        "the owner has as many jobs waiting as the child's queue allows",
        "nothing; raise the queue's max_pending_per_owner if that is too few",
    ),
    ErrorCode.CANCELLED: Meaning(
        False,
        "somebody cancelled it, or the handler raised Cancel",
        "nothing",
    ),
    ErrorCode.REPLACED: Meaning(
        False,
        "a newer job with its unique_key took its place",
        "nothing",
    ),
    ErrorCode.WEBHOOK_REFUSED: Meaning(
        False,
        "the endpoint's address is none that a webhook may be sent to",
        "mend its URL, or allow its network with `PROCESSOR_WEBHOOK_ALLOW`; then redeliver",
    ),
    ErrorCode.WEBHOOK_GONE: Meaning(
        False,
        "the endpoint was removed or disabled, answered 410, or took nothing for a day",
        "nothing; or enable it, then redeliver",
    ),
}
"""Every code of this package. The README has it as a table, which a test keeps equal."""


class ProcessorError(Exception):
    """The root of the tree."""


class UsageError(ProcessorError):
    """A declaration that cannot work: found when the module is imported, not when a job runs."""


class ConfigError(ProcessorError):
    """A setting that is missing or makes no sense; the message names the variable."""


class ResourceFailed(ProcessorError):
    """Something that handlers share could not be started; the message names it and says why."""


class JobError(ProcessorError):
    """A failure that a handler wants to see under its own code.

    ``code`` is upper case with underscores; ``retryable`` defaults to what the code means here
    (unknown codes: yes); ``retry_after`` is the wait in seconds before the next attempt, instead
    of the queue's delay.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retryable: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        if not _CODE.fullmatch(code):
            raise UsageError(f"JobError code {code!r} must look like CARD_TOO_LONG: A-Z, 0-9 and _.")
        known = code in ErrorCode.__members__
        self.code = code
        self.retryable = (ErrorCode(code).retryable if known else True) if retryable is None else retryable
        self.retry_after = retry_after
        super().__init__(message)


class ApiError(ProcessorError):
    """The API refused a call. ``code`` is the SQLSTATE, a PGRST code, or an HTTP status."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.code = code
        self.detail = detail
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        parts = [f"{self.message} ({self.code})" if self.code else self.message]
        parts += [text for text in (self.detail, self.hint) if text]
        return "; ".join(parts)


class ApiUnreachable(ApiError):
    """No usable answer: the network, a proxy, or a database that is not there. Worth repeating."""


class AuthFailed(ApiError):
    """The key was refused: wrong, expired, or of a role that may not do this."""


class SchemaMissing(ApiError):
    """The jobs schema is not installed in this project."""


class SchemaMismatch(ApiError):
    """The jobs schema of this project has another version than this package."""


class UnknownKind(ApiError):
    """No handler has declared this kind of job."""


class UnknownQueue(ApiError):
    """The queue does not exist."""


class InvalidPayload(ApiError):
    """The payload is not an object."""


class PayloadTooLarge(ApiError):
    """The payload is over the limit."""


class InvalidItems(ApiError):
    """The items are too many, repeated or malformed."""


class InvalidArgument(ApiError):
    """An argument is out of its range."""


class IdempotencyConflict(ApiError):
    """The idempotency key belongs to a job with other parameters."""


class JobNotFound(ApiError):
    """There is no such job, or it belongs to somebody else."""


class InvalidState(ApiError):
    """The job's state does not allow it."""


class NotAllowed(ApiError):
    """The caller may not do this."""


class WorkerUnknown(ApiError):
    """The server has forgotten this worker: it must register again."""


class UniqueConflict(ApiError):
    """A live job with this unique key exists."""


class TooManyPending(ApiError):
    """The owner has as many jobs waiting in the queue as it allows one owner (``max_pending_per_owner``)."""


class OperatorsOnly(ApiError):
    """The caller is no operator: neither the service nor a user whose token says ``is_operator``."""


class InsufficientCredits(ApiError):
    """The account has fewer credits than the job needs."""


SQLSTATES: dict[str, type[ApiError]] = {
    "JQ001": UnknownKind,
    "JQ002": UnknownQueue,
    "JQ003": InvalidPayload,
    "JQ004": PayloadTooLarge,
    "JQ005": InvalidItems,
    "JQ006": InvalidArgument,
    "JQ007": IdempotencyConflict,
    "JQ008": JobNotFound,
    "JQ009": InvalidState,
    "JQ010": NotAllowed,
    "JQ011": WorkerUnknown,
    "JQ012": UniqueConflict,
    "JQ013": SchemaMismatch,
    "JQ014": TooManyPending,
    "JQ015": OperatorsOnly,
    "PT402": InsufficientCredits,
}
"""What the SQL functions raise, and what it becomes here. A test proves that nothing is missing."""


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return `` Did you mean …?`` for a near miss, else nothing; a common ``prefix`` makes none nearer."""
    others = {other.removeprefix(prefix): other for other in known}
    near = difflib.get_close_matches(name.removeprefix(prefix), others, n=1)
    return f" Did you mean {others[near[0]]!r}?" if near else ""
