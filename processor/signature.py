"""What a handler's signature says: that it takes a job, and what the job's payload is."""

import inspect
import pickle
import typing
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

from processor.calls.context import SyncJobContext
from processor.context import JobContext
from processor.errors import UsageError


class Sort(StrEnum):
    """How a handler's function is called."""

    ASYNC = "async"
    """In the event loop."""
    THREAD = "thread"
    PROCESS = "process"


def sort_of(kind: str, function: Callable[..., Any], *, process: bool) -> Sort:
    """Say how a function is called; raises :class:`UsageError` where it cannot be called as wanted."""
    place = where(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UsageError(f"The handler of {kind!r}, {place}, must return its result, not yield.")
    if inspect.iscoroutinefunction(function):
        if process:
            raise UsageError(
                f"The handler of {kind!r}, {place}, is `async def`: process=True runs a plain `def`, "
                "annotated (job: SyncJobContext[Payload])."
            )
        return Sort.ASYNC
    if not process:
        return Sort.THREAD
    if "<" in function.__qualname__ or function.__module__ == "__main__":
        raise UsageError(
            f"The handler of {kind!r}, {place}, cannot be found by another process: with process=True it "
            "must be a function at the top level of a module that can be imported."
        )
    return Sort.PROCESS


def check_reachable(kind: str, function: Callable[..., Any]) -> None:
    """Raise :class:`UsageError` if another process would find something else under the function's name."""
    try:
        pickle.dumps(function)
    except pickle.PicklingError as error:
        raise UsageError(
            f"The handler of {kind!r}, {where(function)}, cannot be found by another process: {error}. "
            "With process=True, write @app.job above all other decorators."
        ) from error


def payload_adapter(kind: str, function: Callable[..., Any], sort: Sort) -> TypeAdapter[Any]:
    """Find the payload's type in the handler's annotation.

    Raises :class:`UsageError` where the signature cannot be that of a handler.
    """
    place = where(function)
    wanted, other = (JobContext, SyncJobContext) if sort is Sort.ASYNC else (SyncJobContext, JobContext)
    parameters = list(inspect.signature(function).parameters.values())
    by_name = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}
    if not parameters or parameters[0].kind in by_name:
        raise UsageError(
            f"The handler of {kind!r}, {place}, must take one argument, (job: {wanted.__name__}[Payload]), "
            "and then resources by name."
        )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UsageError(
            f"The annotations of {place} name something that cannot be found: {error}. "
            "Define the payload's type at the top level of the module."
        ) from error
    annotation = hints.get(parameters[0].name, wanted)
    if annotation is wanted:
        return TypeAdapter(dict[str, Any])
    if other in {annotation, typing.get_origin(annotation)}:
        runs = "in the event loop" if sort is Sort.ASYNC else f"in a {sort.value}"
        raise UsageError(
            f"The handler of {kind!r}, {place}, runs {runs}, so it takes a {wanted.__name__}: write "
            f"`{parameters[0].name}: {_name(annotation).replace(other.__name__, wanted.__name__)}`, "
            f"or make it `{'def' if sort is Sort.ASYNC else 'async def'}`."
        )
    if typing.get_origin(annotation) is not wanted:
        raise UsageError(
            f"The handler of {kind!r}, {place}, takes {_name(annotation)}; "
            f"write `{parameters[0].name}: {wanted.__name__}[{_name(annotation)}]`: "
            "the payload is then `job.payload`."
        )
    payload = typing.get_args(annotation)[0]
    if isinstance(payload, typing.TypeVar) or payload is Any:
        return TypeAdapter(dict[str, Any])
    if payload in {str, int, float, bool, list, tuple, set, bytes} or typing.get_origin(payload) in {
        list,
        tuple,
        set,
    }:
        raise UsageError(
            f"{wanted.__name__}[{_name(payload)}] of {place}: a payload is a JSON object, so its type must "
            "be a pydantic model, a dataclass, a TypedDict or a dict."
        )
    try:
        return TypeAdapter(payload)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise UsageError(
            f"{wanted.__name__}[{_name(payload)}] of {place} cannot be validated: {error}. "
            "Use a pydantic model, a dataclass, a TypedDict or a dict."
        ) from error


def payload_schema(kind: str, payload: TypeAdapter[Any]) -> dict[str, Any]:
    """Return the payload's JSON Schema; raises :class:`UsageError` if it has none."""
    try:
        return payload.json_schema()
    except PydanticUserError as error:
        raise UsageError(f"The payload of {kind!r} has no JSON Schema: {error}") from error


def where(function: Callable[..., Any]) -> str:
    """Say where a function is defined."""
    return f"{function.__module__}.{function.__qualname__}"


def _name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
