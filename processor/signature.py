"""What a handler's signature says: that it takes a job, and what the job's payload is."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

from processor.context import JobContext
from processor.errors import UsageError


def payload_adapter(kind: str, function: Callable[..., Any]) -> TypeAdapter[Any]:
    """Find the payload's type in the handler's annotation.

    Raises :class:`UsageError` where the signature cannot be that of a handler.
    """
    place = where(function)
    if not inspect.iscoroutinefunction(function):
        raise UsageError(f"The handler of {kind!r}, {place}, must be `async def`.")
    parameters = list(inspect.signature(function).parameters.values())
    required = [
        p for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    if not parameters or len(required) > 1 or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise UsageError(
            f"The handler of {kind!r}, {place}, must take one argument: (job: JobContext[Payload])."
        )
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise UsageError(
            f"The annotations of {place} name something that cannot be found: {error}. "
            "Define the payload's type at the top level of the module."
        ) from error
    annotation = hints.get(parameters[0].name, JobContext)
    if annotation is JobContext:
        return TypeAdapter(dict[str, Any])
    if typing.get_origin(annotation) is not JobContext:
        raise UsageError(
            f"The handler of {kind!r}, {place}, takes {_name(annotation)}; "
            f"write `{parameters[0].name}: JobContext[{_name(annotation)}]`: "
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
            f"JobContext[{_name(payload)}] of {place}: a payload is a JSON object, so its type must be "
            "a pydantic model, a dataclass, a TypedDict or a dict."
        )
    try:
        return TypeAdapter(payload)
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise UsageError(
            f"JobContext[{_name(payload)}] of {place} cannot be validated: {error}. "
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
