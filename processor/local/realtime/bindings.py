"""What a client asks to hear of: one element of ``postgres_changes`` in its join."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from processor.local.realtime.filters import Filter, FilterError, parse
from processor.local.realtime.tables import Access

EVENTS = ("INSERT", "UPDATE", "DELETE")


class SubscriptionError(ValueError):
    """A binding that cannot be served; the message goes to the client."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One element of ``postgres_changes`` in a join: what a client wants to hear of."""

    id: int
    event: str
    schema: str
    table: str
    filters: tuple[Filter, ...]
    selected: frozenset[str] | None

    @classmethod
    def parse(cls, id_: int, params: dict[str, Any]) -> Binding:
        """Read the client's parameters.

        Raises:
            SubscriptionError: they make no sense; the message says which.

        """
        schema, table, text = params.get("schema"), params.get("table"), params.get("filter")
        if not isinstance(schema, str) and not isinstance(table, str):
            raise SubscriptionError(
                "No subscription params provided. Please provide at least a `schema` or `table` to subscribe"
                f" to: {sorted(params)}"
            )
        schema = schema if isinstance(schema, str) else "public"
        table = table if isinstance(table, str) else "*"
        try:
            filters = parse(text) if isinstance(text, str) else ()
        except FilterError as error:
            raise SubscriptionError(f"Error parsing `filter` params: {error}") from error
        event = str(params.get("event", "*")).upper()
        selected = cls._selected(params.get("select"))
        if selected is not None and "*" in (schema, table):
            raise SubscriptionError(
                "Column selection is not supported for wildcard subscriptions."
                " Provide an explicit schema and table name."
            )
        return cls(id_, event if event in EVENTS else "*", schema, table, filters, selected)

    @staticmethod
    def _selected(value: Any) -> frozenset[str] | None:
        if isinstance(value, str):
            raise SubscriptionError(
                'Error parsing `select` params: expected a list of column name strings, e.g. ["id", "name"]'
            )
        names = [name for name in value if isinstance(name, str)] if isinstance(value, list) else []
        return frozenset(names) or None

    def matches(self, schema: str, table: str) -> bool:
        """Tell whether a table is meant."""
        return self.schema in ("*", schema) and self.table in ("*", table)

    def __str__(self) -> str:
        filters = ", ".join(map(str, self.filters))
        return f"[event: {self.event}, schema: {self.schema}, table: {self.table}, filters: [{filters}]]"


def check_columns(binding: Binding, access: Access) -> None:
    """Check that the role may read what the binding names.

    Raises:
        FilterError: it may not, or there is no such column.

    """
    for condition in binding.filters:
        if condition.column not in access.readable:
            raise FilterError(f"invalid column for filter {condition.column}")
    for column in sorted(binding.selected or ()):
        if column not in access.readable:
            raise FilterError(f"invalid column for select {column}")
