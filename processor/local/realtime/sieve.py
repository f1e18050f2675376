"""What most of the log is: changes that no filter lets through. They are told without decoding the row."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TypeAlias

import asyncpg

from processor.local.realtime.filters import FilterError, Matcher
from processor.local.realtime.pgoutput import Relation, peek
from processor.local.realtime.subscriptions import Subscription
from processor.local.realtime.tables import ACCESS_LIFETIME, Catalogue, Table

Tests: TypeAlias = list[tuple[int, Matcher]]
"""What must hold for a subscription to want a row: places of columns, and what their text must be."""


class Sieve:
    """Stops inserts or updates of one table that no subscription wants; lets through what it cannot judge."""

    def __init__(self, subscriptions: list[Tests]) -> None:
        self._subscriptions = subscriptions
        self._judges = all(subscriptions)  # unless one wants everything
        asked = (index for tests in subscriptions for index, _ in tests)
        self._columns = max(asked, default=-1) + 1
        self._expires = time.monotonic() + ACCESS_LIFETIME

    @classmethod
    async def make(
        cls, catalogue: Catalogue, relation: Relation, table: Table, subscriptions: Iterable[Subscription]
    ) -> Sieve:
        """Make one of the filters that need no database; who must be told of a refusal wants everything."""
        tests = []
        for each in subscriptions:
            access = await catalogue.access(table, each.role)
            shown = table.primary_key and access.readable.issuperset(table.primary_key)
            tests.append(await _tests(catalogue, relation, table, each) if shown else [])
        return cls(tests)

    @property
    def expired(self) -> bool:
        """Whether roles may have changed since it was made, so that another one is due."""
        return time.monotonic() >= self._expires

    def passes(self, data: bytes) -> bool:
        """Tell whether some subscription may want this insert or update, given as it is in the log."""
        if not self._judges or (values := peek(data, self._columns)) is None:
            return True
        for tests in self._subscriptions:
            for index, match in tests:
                value = values[index]
                if (value is None or isinstance(value, str)) and not match(value):
                    break
            else:
                return True
        return False


async def _tests(catalogue: Catalogue, relation: Relation, table: Table, each: Subscription) -> Tests:
    tests: Tests = []
    for condition in each.binding.filters:
        try:
            match = await catalogue.bind(condition, table)
        except (FilterError, asyncpg.DataError):
            continue  # whoever delivers says so
        if match is not None and condition.column in relation.indexes:
            tests.append((relation.indexes[condition.column], match))
    return tests
