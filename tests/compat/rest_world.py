"""Make and remove what the REST tests look at."""

from pathlib import Path

import asyncpg

REMOVE = """
do $$
declare
  statement text;
begin
  for statement in
    select format('drop function if exists %s cascade', oid::regprocedure)
      from pg_proc
     where pronamespace = 'public'::regnamespace and proname like 'rest\\_%'
     union all
    select format('drop %s if exists public.%I cascade', case relkind when 'v' then 'view' else 'table' end,
           relname)
      from pg_class
     where relnamespace = 'public'::regnamespace and relkind in ('r', 'v') and relname like 'rest\\_%'
     order by 1 -- functions, which would go with their tables, first
  loop
    execute statement;
  end loop;
end
$$
"""


async def make(db_url: str) -> None:
    """Make tables, rows and functions, all named ``rest_…``."""
    await _run(db_url, REMOVE, Path(__file__).with_suffix(".sql").read_text())


async def remove(db_url: str) -> None:
    """Remove them, and whatever else begins with ``rest_``."""
    await _run(db_url, REMOVE)


async def _run(db_url: str, *scripts: str) -> None:
    connection = await asyncpg.connect(db_url)
    try:
        for script in scripts:
            await connection.execute(script)
    finally:
        await connection.close()
