"""How an attempt ends: what the handler's end asks for, and what the database has made of that."""

from typing import Any

from pydantic import ValidationError

from processor.answers import PLAIN, Settled
from processor.context import JobContext, invalid_result
from processor.errors import ErrorCode
from processor.events.lifecycle import AttemptEnded, JobFinished, JobLost, JobRetried, JobSnoozed
from processor.job import Failure, Outcome, OutcomeKind, Wait, refuse_decision
from processor.jsonb import to_jsonb, to_text
from processor.retry import problems
from processor.run import Run

_AGAIN = {OutcomeKind.SNOOZE, OutcomeKind.WAIT}
"""What a job runs again for, if not because it is to be tried again."""


def returned(result: Any, items_delay: float | None) -> Outcome:
    """Accept what ``jsonb`` can hold."""
    try:
        refuse_decision(result)
        return Outcome(OutcomeKind.DONE, result=to_jsonb(result), delay=items_delay)
    except ValueError as error:
        return Outcome(OutcomeKind.FAIL, failure=invalid_result("the result", error))


def waiting(decision: Wait, context: JobContext[Any]) -> Outcome:
    """Wait for the children, if there are any to wait for: else the job would run again at once, for ever."""
    if all(child.ended for child in context.children):
        have = "all its children have ended" if context.children else "it has no children"
        message = f"the handler raised Wait, but {have}: spawn some first, or write `job.join()`"
        failure = Failure(ErrorCode.INVALID_RESULT, message, retryable=False)
        return Outcome(OutcomeKind.FAIL, failure=failure)
    return Outcome(OutcomeKind.WAIT, message=to_text(decision.reason, 500))


def cancelled(reason: str) -> Outcome:
    """End the job as cancelled."""
    failure = Failure(ErrorCode.CANCELLED, to_text(reason, 500), retryable=False)
    return Outcome(OutcomeKind.CANCELLED, failure=failure)


def crashed(error: Exception) -> Outcome:
    """Describe a failure by what cannot fail again: an exception's text may be what crashed."""
    message = f"{type(error).__name__} in the application, outside its handler; see the daemon's log"
    return Outcome(OutcomeKind.RETRY, failure=Failure(ErrorCode.HANDLER_CRASHED, message, retryable=True))


def invalid_payload(error: ValidationError) -> Outcome:
    """Say what is wrong with the payload; another attempt would not help."""
    failure = Failure(ErrorCode.INVALID_PAYLOAD, to_text("; ".join(problems(error))), retryable=False)
    return Outcome(OutcomeKind.FAIL, failure=failure)


def settled_as(run: Run, outcome: Outcome, settled: Settled) -> AttemptEnded:
    """Say what the database has made of an outcome that it took, or had no use for any more."""
    about, ran = run.about, run.ran
    if settled.stale:
        return JobLost(**about, ran=ran, how="stale")
    facts = settled.facts or PLAIN
    if settled.status not in {None, "pending"}:
        return JobFinished(
            **about,
            ran=ran,
            status=settled.status,
            error_code=facts.error_code,
            error_message=facts.error_message,
            items_total=facts.items_total,
            items_done=facts.items_done,
            items_failed=facts.items_failed,
            credits_captured=facts.credits_captured,
            credits_refunded=facts.credits_refunded,
        )
    if outcome.kind in _AGAIN:
        waits = outcome.kind is OutcomeKind.WAIT
        return JobSnoozed(**about, ran=ran, run_at=None if waits else settled.run_at, waiting=waits)
    return JobRetried(
        **about,
        ran=ran,
        run_at=settled.run_at,
        error_code=facts.error_code,
        error_message=facts.error_message,
    )
