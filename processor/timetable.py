"""What a declared schedule is: a time, and the job that is made then."""

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from processor.cron import Cron
from processor.errors import UsageError
from processor.jsonb import to_jsonb

CatchUp = Literal["none", "last", "all"]
"""For times at which no worker was alive: nothing, one job for the last of them, a job for each."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One declared schedule."""

    name: str
    cron: Cron
    kind: str
    payload: dict[str, Any]
    items: list[Any] | None
    priority: int
    catch_up: CatchUp

    def declaration(self) -> dict[str, Any]:
        """Return what the database is told about it."""
        return {
            "name": self.name,
            "cron": self.cron.expression,
            "timezone": self.cron.timezone,
            "kind": self.kind,
            "payload": self.payload,
            "items": self.items,
            "priority": self.priority,
            "catch_up": self.catch_up,
        }


def scheduled(
    name: str,
    expression: str,
    timezone: str,
    kind: str,
    items: Sequence[Any] | None,
    priority: int,
    catch_up: CatchUp,
) -> Schedule:
    """Return a schedule, without its payload; raises :class:`UsageError` where it cannot be one."""
    if catch_up not in typing.get_args(CatchUp):
        raise UsageError(f"catch_up={catch_up!r} of schedule {name!r}: say 'none', 'last' or 'all'.")
    if not -1000 <= priority <= 1000:
        raise UsageError(f"priority={priority!r} of schedule {name!r} must be from -1000 to 1000.")
    if isinstance(items, str):
        raise UsageError(f"items={items!r} of schedule {name!r}: give a list, such as [{items!r}].")
    try:
        cron = Cron(expression, timezone)
        wanted = None if items is None else to_jsonb(list(items))
    except (UsageError, ValueError) as error:
        raise UsageError(f"Schedule {name!r}: {error}") from error
    return Schedule(name, cron, kind, {}, wanted, priority, catch_up)


def stored_payload(schedule: Schedule, adapter: TypeAdapter[Any], payload: Any) -> dict[str, Any]:
    """Return a schedule's payload as JSON, checked as the worker will when the job runs.

    Raises :class:`UsageError` where the handler takes another one, or it cannot be stored.
    """
    try:
        plain: dict[str, Any] = to_jsonb({} if payload is None else payload)
        adapter.validate_python(plain)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'payload'}: {e['msg']}" for e in error.errors()]
        raise UsageError(
            f"Schedule {schedule.name!r}: the handler of {schedule.kind!r} takes another payload: "
            f"{'; '.join(wrong)}"
        ) from error
    except ValueError as error:
        raise UsageError(f"Schedule {schedule.name!r}: its payload cannot be stored: {error}") from error
    return plain
