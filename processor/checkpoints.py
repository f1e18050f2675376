"""Durable steps: what a handler has done stays done, whatever becomes of its attempt."""

import asyncio
import copy
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from processor.errors import ErrorCode, JobError
from processor.job import Checkpoint, Step
from processor.jsonb import as_stored, to_jsonb

_LONGEST_NAME = 200

Call = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]
"""A function and what it is called with."""


@dataclass(slots=True)
class _Step:
    """What became of one name in this attempt."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    call: Call | None = None
    """What is running under this name, or has been completed."""
    taker: asyncio.Task[Any] | None = None
    """Who is running it."""
    done: bool = False
    result: Any = None


class Checkpoints:
    """The steps of one attempt, with those that earlier attempts completed.

    ``save`` makes a step durable; ``read`` gets one that was too big to come with the claim.
    """

    def __init__(
        self,
        known: Sequence[Checkpoint],
        *,
        save: Callable[[Step], Awaitable[None]],
        read: Callable[[str], Awaitable[Any]],
    ) -> None:
        self._known = {checkpoint.name: checkpoint for checkpoint in known}
        self._save = save
        self._read = read
        self._steps: dict[str, _Step] = {}

    async def run(self, name: str, call: Call) -> Any:
        """Return what the step came to, taking it if no attempt has completed it.

        Raises ``JobError``: ``CHECKPOINT_REFUSED`` for a name that stands for something else already,
        ``INVALID_RESULT`` for a result that cannot be stored; and whatever the step raises.
        """
        step = self._steps.setdefault(_checked(name), _Step())
        _refuse_another(name, step, call)  # at once: it might wait for itself
        async with step.turn:
            _refuse_another(name, step, call)  # somebody else may have had the turn meanwhile
            if not step.done:
                await self._complete(name, step, call)
        return copy.deepcopy(step.result)  # the handler may change what it gets, and ask again

    async def _complete(self, name: str, step: _Step, call: Call) -> None:
        step.call, step.taker = call, asyncio.current_task()
        try:
            step.result = await self._result(name, call)
            step.done = True
        finally:
            step.taker = None
            if not step.done:
                step.call = None  # it failed: what is tried next may be something else

    async def _result(self, name: str, call: Call) -> Any:
        known = self._known.get(name)
        if known is not None:
            return await self._read(name) if known.left_out else known.result
        function, arguments, options = call
        value = function(*arguments, **options)
        if inspect.isawaitable(value):
            value = await value
        try:
            result = as_stored(to_jsonb(value))
        except ValueError as error:
            reason = f"the result of checkpoint {name!r} cannot be stored: {error}"
            raise JobError(reason, code=ErrorCode.INVALID_RESULT) from error
        await self._save(Step(name, result))
        return result


def _checked(name: object) -> str:
    if not isinstance(name, str):
        reason = f"checkpoint({name!r}, …): the first argument is the name of the step, a text"
        raise JobError(reason, code=ErrorCode.CHECKPOINT_REFUSED)
    try:
        to_jsonb(name)
    except ValueError as error:
        reason = f"the name {name!r} of a checkpoint cannot be stored: {error}"
        raise JobError(reason, code=ErrorCode.CHECKPOINT_REFUSED) from error
    if not 1 <= len(name) <= _LONGEST_NAME:
        reason = f"the name of a checkpoint has {len(name)} characters, but must have 1 to {_LONGEST_NAME}"
        raise JobError(reason, code=ErrorCode.CHECKPOINT_REFUSED)
    return name


def _refuse_another(name: str, step: _Step, call: Call) -> None:
    """Let one name stand for one thing: a loop that forgets the number would get the first result for all."""
    if step.call is None:
        return
    if step.taker is asyncio.current_task():
        reason = f"checkpoint {name!r} calls itself: give the step inside it another name"
    elif _same(step.call, call):
        return
    else:
        reason = (
            f"two different steps of one attempt are called {name!r}: each needs a name of its own, "
            f"such as {f'{name} 1'!r} and {f'{name} 2'!r} in a loop"
        )
    raise JobError(reason, code=ErrorCode.CHECKPOINT_REFUSED)


def _same(one: Call, other: Call) -> bool:
    try:
        return bool(one == other)
    except Exception:  # noqa: BLE001 - arguments of any type compare as they like; what cannot is not the same
        return False
