"""The REST gateway through supabase-js, unmodified."""

from typing import Any

from tests.compat import javascript


async def test_supabase_js_signs_up_calls_functions_and_uses_tables(rest_stack: Any) -> None:
    javascript.install()
    await javascript.run("rest.js", rest_stack)
