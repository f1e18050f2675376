"""What the compatibility tests share."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compat import rest_world


@pytest.fixture(scope="session")
def rest_stack(stack: Any) -> Iterator[Any]:
    """Give the stack with the tables and functions of ``rest_world.sql``."""
    asyncio.run(rest_world.make(stack.db_url))
    yield stack
    asyncio.run(rest_world.remove(stack.db_url))
