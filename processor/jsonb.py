"""A Python value as PostgreSQL's ``jsonb`` can hold it.

``jsonb`` refuses NaN, infinities, NUL characters and lone surrogates, and PostgREST then refuses
the whole call. So values are judged one by one, before they share a call with others.
"""

import json
from decimal import Decimal
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python


def to_jsonb(value: Any) -> Any:
    """Convert models, dataclasses, dates, … to plain JSON values.

    Raises ``ValueError`` with the reason if ``jsonb`` could not hold the value.
    """
    try:
        plain = to_jsonable_python(value)
        text = json.dumps(plain, allow_nan=False, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("it contains a lone surrogate, which is not valid Unicode text") from error
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if "\\u0000" in text and _has_nul(plain):
        raise ValueError("it contains a NUL character, which PostgreSQL cannot store")
    return plain


def as_stored(plain: Any) -> Any:
    """Return a value of :func:`to_jsonb` as ``jsonb`` gives it back, its keys in that order.

    Whoever goes on with this one does what somebody who reads the stored one does.
    """
    return json.loads(json.dumps(plain, ensure_ascii=False), parse_float=_number, object_pairs_hook=_ordered)


def to_text(value: object, limit: int = 2000) -> str:
    """Return ``str(value)`` without what PostgreSQL cannot store, cut to ``limit`` characters."""
    text = str(value).replace("\x00", "�").encode(errors="replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _number(digits: str) -> int | float:
    """Read a number that is no plain int: ``jsonb`` has no exponents, so ``1e+23`` comes back whole."""
    return int(Decimal(digits)) if "e+" in digits else float(digits)


def _ordered(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Order keys as ``jsonb`` does: the short ones first."""
    return dict(sorted(pairs, key=lambda pair: (len(key := pair[0].encode()), key)))


def _has_nul(value: Any) -> bool:
    """Look for a real NUL: the escaped form is also how a backslash before ``u0000`` is written."""
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(entry) for key, entry in value.items())
    return isinstance(value, list) and any(_has_nul(entry) for entry in value)
