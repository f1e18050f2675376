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
        └── InsufficientCredits  PT402
"""

# The names say what happened; an "Error" behind each of them would add nothing.
# ruff: noqa: N818

import difflib
import re
from collections.abc import Iterable
from enum import StrEnum

_CODE = re.compile(r"[A-Z][A-Z0-9_]{1,63}")


class ErrorCode(StrEnum):
    """The codes this package puts on failed jobs and items; handlers may add their own."""

    UPSTREAM_TIMEOUT = "UPSTREAM_TIMEOUT"
    UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    UPSTREAM_REJECTED = "UPSTREAM_REJECTED"
    RATE_LIMITED = "RATE_LIMITED"
    AUTH_FAILED = "AUTH_FAILED"
    INVALID_PAYLOAD = "INVALID_PAYLOAD"
    INVALID_RESULT = "INVALID_RESULT"
    HANDLER_TIMEOUT = "HANDLER_TIMEOUT"
    HANDLER_CRASHED = "HANDLER_CRASHED"
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

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed without anybody changing anything."""
        return self not in _FINAL


_FINAL = frozenset(
    {
        ErrorCode.UPSTREAM_REJECTED,
        ErrorCode.AUTH_FAILED,
        ErrorCode.INVALID_PAYLOAD,
        ErrorCode.INVALID_RESULT,
        ErrorCode.DISCARDED,
        ErrorCode.CHILD_FAILED,
        ErrorCode.CHILD_REFUSED,
        ErrorCode.CHECKPOINT_REFUSED,
        ErrorCode.INSUFFICIENT_CREDITS,
        ErrorCode.CANCELLED,
        ErrorCode.REPLACED,
    }
)


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
    "PT402": InsufficientCredits,
}
"""What the SQL functions raise, and what it becomes here. A test proves that nothing is missing."""


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return `` Did you mean …?`` for a near miss, else nothing; a common ``prefix`` makes none nearer."""
    others = {other.removeprefix(prefix): other for other in known}
    near = difflib.get_close_matches(name.removeprefix(prefix), others, n=1)
    return f" Did you mean {others[near[0]]!r}?" if near else ""
