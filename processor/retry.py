"""What an exception means for the job: its code, and whether and when to try again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import structlog
from pydantic import ValidationError

from processor.errors import ApiError, ApiUnreachable, ErrorCode, InsufficientCredits, JobError
from processor.job import Discard, Failure, Retry
from processor.jsonb import to_text
from processor.redact import redact
from processor.upstream import capped, meaning

log = structlog.get_logger("processor.retry")


@dataclass(frozen=True, slots=True)
class Rule:
    """One mapping that a user added."""

    code: str
    retryable: bool | None
    retry_after: Callable[[BaseException], float | None] | None


class Classifier:
    """Exception → :class:`Failure`. Knows what :mod:`processor.upstream` does; users add their own types."""

    def __init__(self) -> None:
        self._rules: dict[type[BaseException], Rule] = {}

    def add(
        self,
        error: type[BaseException],
        code: str,
        *,
        retryable: bool | None = None,
        retry_after: Callable[[BaseException], float | None] | None = None,
    ) -> Self:
        """Give ``error`` and its subclasses a code; ``retry_after`` may read seconds from it.

        The rule of the nearest class counts, the last one given for it. Rules go before what is built in.
        """
        JobError("", code=code)  # one place knows what a code looks like
        self._rules[error] = Rule(code, retryable, retry_after)
        return self

    def classify(self, error: BaseException) -> Failure:
        """Say what ``error`` means; an unknown one is a crash of the handler, and retryable."""
        for cause in _causes(error):
            failure = self._by_rule(cause) or _built_in(cause)
            if failure is not None:
                return failure
        return _failure(ErrorCode.HANDLER_CRASHED, error)

    def _by_rule(self, error: BaseException) -> Failure | None:
        for base in type(error).__mro__:
            rule = self._rules.get(base)
            if rule is not None:
                known = JobError("", code=rule.code, retryable=rule.retryable)
                return Failure(known.code, _message(error), known.retryable, _delay(rule, error))
        return None


def _delay(rule: Rule, error: BaseException) -> float | None:
    """Ask the user's function how long to wait; if it fails, the queue's delays hold."""
    if rule.retry_after is None:
        return None
    try:
        return capped(rule.retry_after(error))
    except Exception:
        log.exception("job.rule_failed", code=rule.code, error=type(error).__name__)
        return None


def _causes(error: BaseException) -> list[BaseException]:
    """Return the error, then what it was explicitly raised from, and the lone member of a group."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        if isinstance(current, BaseExceptionGroup) and len(current.exceptions) == 1:
            current = current.exceptions[0]
        else:
            current = current.__cause__
    return chain


def _built_in(error: BaseException) -> Failure | None:
    match error:
        case JobError():
            return Failure(error.code, _shown(error), error.retryable, capped(error.retry_after))
        case Retry():
            return Failure(ErrorCode.RETRY_REQUESTED, _shown(error.reason), True, error.delay)
        case Discard():
            return Failure(ErrorCode.DISCARDED, _shown(error.reason), False)
        # a handler meets the jobs' API where it spawns children
        case InsufficientCredits():
            return _failure(ErrorCode.INSUFFICIENT_CREDITS, error)
        case ApiError(code="JQ014"):
            return _failure(ErrorCode.TOO_MANY_PENDING, error)
        case ApiUnreachable():
            return _failure(ErrorCode.UPSTREAM_UNAVAILABLE, error)
        case ApiError():
            return _failure(ErrorCode.CHILD_REFUSED, error)
    found = meaning(error)
    return None if found is None else _failure(found[0], error, found[1])


def _failure(code: ErrorCode, error: BaseException, delay: float | None = None) -> Failure:
    return Failure(code, _message(error), code.retryable, delay)


def _message(error: BaseException) -> str:
    text, name = _shown(error), type(error).__name__
    return to_text(f"{name}: {text}" if text else name)


def _shown(error: object) -> str:
    """Return what an error says, for the job's owner to read: without secrets, and not too long."""
    if isinstance(error, ValidationError):  # its own text has the values
        return to_text("; ".join(problems(error)))
    try:
        text = str(error).strip()
    except Exception as broken:  # noqa: BLE001 - the exception's own code
        return f"its text cannot be read, because of {type(broken).__name__}"
    return to_text(redact(text[:_READ]))


_READ = 20_000
"""Characters of a message that are looked at: what is kept is far less."""


def problems(error: ValidationError) -> list[str]:
    """Say what does not fit, field by field, without the values."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return [
        f"{'.'.join(str(part) for part in problem['loc']) or 'payload'}: {problem['msg']}"
        for problem in found
    ]
