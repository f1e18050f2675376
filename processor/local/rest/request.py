"""What the headers of a request ask for: Prefer, Accept, Range, profile; and its body."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from processor.local.rest.errors import RestError
from processor.local.rest.schema import SCHEMA

PREFERENCES = {
    "return": {"representation", "minimal", "headers-only"},
    "count": {"exact", "planned", "estimated"},
    "resolution": {"merge-duplicates", "ignore-duplicates"},
    "missing": {"default", "null"},
    "handling": {"strict", "lenient"},
    "tx": {"commit"},
}
APPLIED = ("return", "count", "resolution", "missing", "handling", "max-affected")
ARRAY = "application/vnd.pgrst.array+json"
OBJECT = "application/vnd.pgrst.object+json"
LIST_TYPES = {"application/json", "application/*", "*/*", ARRAY, "application/vnd.pgrst.array"}
OBJECT_TYPES = {OBJECT, "application/vnd.pgrst.object"}
RANGE = re.compile(r"(?:items=)?(\d+)-(\d*)\Z")


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences that were understood; others are ignored unless ``handling=strict``."""

    values: dict[str, str]

    @property
    def returning(self) -> str | None:
        """``representation``, ``minimal``, ``headers-only`` or not said."""
        return self.values.get("return")

    @property
    def count(self) -> str | None:
        """How to count all rows: ``exact``, ``planned``, ``estimated`` or not at all."""
        return self.values.get("count")

    @property
    def max_affected(self) -> int | None:
        """How many rows a write may touch; only ``handling=strict`` enforces it."""
        if self.values.get("handling") != "strict" or "max-affected" not in self.values:
            return None
        return int(self.values["max-affected"])

    def applied(self) -> dict[str, str]:
        """Return the header that tells the client what was honoured."""
        said = ", ".join(f"{name}={self.values[name]}" for name in APPLIED if name in self.values)
        return {"Preference-Applied": said} if said else {}


@dataclass(frozen=True, slots=True)
class Accept:
    """The wanted shape: a list of rows or one object; nulls can be left out."""

    single: bool = False
    strip_nulls: bool = False

    @property
    def media_type(self) -> str:
        """The Content-Type of the answer."""
        if not self.single and not self.strip_nulls:
            return "application/json; charset=utf-8"
        kind = OBJECT if self.single else ARRAY
        return f"{kind}{';nulls=stripped' if self.strip_nulls else ''}; charset=utf-8"


def preferences(request: Request) -> Preferences:
    """Read all Prefer headers.

    Raises:
        RestError: one is unknown and ``handling=strict`` was asked for.

    """
    values: dict[str, str] = {}
    unknown: list[str] = []
    for header in request.headers.getlist("prefer"):
        for part in filter(None, (part.strip() for part in header.split(","))):
            name, _, value = part.partition("=")
            known = value.isdigit() if name == "max-affected" else value in PREFERENCES.get(name, ())
            if known:
                values.setdefault(name, value)
            else:
                unknown.append(part)
    if unknown and values.get("handling") == "strict":
        raise RestError(
            400,
            "PGRST122",
            "Invalid preferences given with handling=strict",
            details=f"Invalid preferences: {', '.join(unknown)}",
        )
    return Preferences(values)


def accept(request: Request) -> Accept:
    """Choose the first acceptable media type that can be served.

    Raises:
        RestError: there is none (CSV, plans and binary are not).

    """
    header = request.headers.get("accept") or "*/*"
    for wanted in header.split(","):
        kind, *options = (part.strip().lower() for part in wanted.split(";"))
        strip = "nulls=stripped" in options
        if kind in OBJECT_TYPES:
            return Accept(single=True, strip_nulls=strip)
        if kind in LIST_TYPES:
            return Accept(strip_nulls=strip)
    raise RestError(406, "PGRST107", f"None of these media types are available: {header}")


def check_profile(request: Request) -> None:
    """Only ``public`` is exposed.

    Raises:
        RestError: another schema is asked for.

    """
    name = "accept-profile" if request.method in {"GET", "HEAD"} else "content-profile"
    profile = request.headers.get(name, SCHEMA)
    if profile != SCHEMA:
        raise RestError(
            406,
            "PGRST106",
            f"Invalid schema: {profile}",
            hint=f"Only the following schemas are exposed: {SCHEMA}",
        )


def rows_range(request: Request) -> tuple[int, int | None]:
    """Return offset and limit of the Range header (rows, not bytes), which only reads have.

    Raises:
        RestError: the end lies before the start.

    """
    found = RANGE.match(request.headers.get("range", "")) if request.method in {"GET", "HEAD"} else None
    if found is None:
        return 0, None
    first, last = int(found.group(1)), found.group(2)
    if not last:
        return first, None
    if int(last) < first:
        raise RestError(
            416,
            "PGRST103",
            "Requested range not satisfiable",
            details="The lower boundary must be lower than or equal to the upper boundary in the Range "
            "header.",
        )
    return first, int(last) - first + 1


async def body(request: Request) -> tuple[str, Any]:
    """Return the JSON body as text, for the database, and parsed, for its keys.

    Raises:
        RestError: it is not JSON.

    """
    raw = await request.body()
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in {"application/json", "", "*/*"} and not kind.endswith("+json"):
        raise RestError(400, "PGRST102", f"Content-Type not acceptable: {kind}")
    try:
        text = raw.decode()
        return text, json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RestError(400, "PGRST102", "Empty or invalid json") from error
