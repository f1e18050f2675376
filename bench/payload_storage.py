"""Compare ways to store payloads and results, by what a transition costs.

Run it with ``python bench/payload_storage.py``. The same jobs go through claim and finish in databases that
differ in one setting of public.jobs only; the variants take turns, so that a busy machine disturbs all alike.
It prints the bytes of write-ahead log and the server's CPU per job, and the bytes on disk per finished job.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
from collections import defaultdict

import asyncpg
from rich.console import Console
from rich.table import Table

from processor.cli.bench_client import Client
from processor.cli.bench_database import FREE_KIND, QUEUE, make_project, running_server

BATCH = 500
ROUNDS = 4
# bytes of payload and of result
SIZES = [(200, 100), (1000, 100), (2500, 100), (4000, 100), (16000, 100), (200, 1000), (200, 4000)]

OWN_TABLE = """
create table public.job_payloads (
  job_id uuid primary key references public.jobs (id) on delete cascade,
  payload jsonb not null
);
do $$
begin
  execute replace(pg_get_functiondef('processor.claimed'::regproc), ' j.payload,',
    ' (select p.payload from public.job_payloads p where p.job_id = j.id) as payload,');
end
$$;
alter table public.job_payloads set (toast_tuple_target = 512);
"""
VARIANTS = {
    "default": "alter table public.jobs reset (toast_tuple_target)",
    "toast_tuple_target 128": "alter table public.jobs set (toast_tuple_target = 128)",
    "toast_tuple_target 256": "alter table public.jobs set (toast_tuple_target = 256)",
    "toast_tuple_target 512": "alter table public.jobs set (toast_tuple_target = 512)",
    "external": """
        alter table public.jobs alter payload set storage external, alter result set storage external;
        alter table public.jobs reset (toast_tuple_target)
    """,
    "external, target 512": """
        alter table public.jobs alter payload set storage external, alter result set storage external;
        alter table public.jobs set (toast_tuple_target = 512)
    """,
    "a table of its own": OWN_TABLE,
}
INSERT = """
    insert into public.jobs (queue, kind, payload, max_attempts)
    select $1, $2, jsonb_build_object('n', n) || ($3::jsonb[])[1 + n % cardinality($3::jsonb[])], 4
    from generate_series(1, $4::int) n
"""
INSERT_APART = """
    with made as (
      insert into public.jobs (queue, kind, max_attempts)
      select $1, $2, 4 from generate_series(1, $4::int) returning id
    )
    insert into public.job_payloads (job_id, payload)
    select m.id, jsonb_build_object('n', m.n) || ($3::jsonb[])[(1 + m.n % cardinality($3::jsonb[]))::int]
    from (select id, row_number() over () as n from made) m
"""
SIZE = """
    select sum(pg_table_size(c.oid))::bigint from pg_class c
    where c.relnamespace = 'public'::regnamespace and c.relname in ('jobs', 'job_payloads')
"""


def documents(size: int) -> list[dict[str, str]]:
    """Make JSON objects of about so many bytes, as compressible as prose is."""
    words = random.Random(7)  # the same words for all
    vocabulary = ["".join(words.choices("etaoinshrdlu", k=words.randint(2, 9))) for _ in range(1000)]
    common = [1 / rank for rank in range(1, 1001)]
    made = []
    for _ in range(50):
        text = " ".join(words.choices(vocabulary, common, k=size // 3))
        made.append({"text": text[: max(size - 20, 0)]})
    return made


async def wal(connection: asyncpg.Connection) -> int:
    """Return how many bytes of log were ever written."""
    return int(await connection.fetchval("select pg_current_wal_insert_lsn() - '0/0'"))


async def run(dsn: str, payload_size: int, result_size: int, jobs: int) -> dict[str, float]:
    """Create, claim and finish so many jobs; return what each took per job."""
    admin = await asyncpg.connect(dsn)
    client = await Client.connect(dsn)
    try:
        apart = await admin.fetchval("select to_regclass('public.job_payloads') is not null")
        await admin.execute("truncate public.jobs cascade; checkpoint")
        payloads = [json.dumps(document) for document in documents(payload_size)]
        result = documents(result_size)[0]
        found: dict[str, float] = defaultdict(float)
        start = await wal(admin)
        await admin.execute(INSERT_APART if apart else INSERT, QUEUE, FREE_KIND, payloads, jobs)
        found["create"] = await wal(admin) - start
        await admin.execute("analyze public.jobs")
        while True:
            start = await wal(admin)
            claimed = await client.claim(BATCH)
            if not claimed:
                break
            # the variant has brought the payload
            assert len(json.dumps(claimed[0]["payload"])) >= payload_size - 40
            found["claim"] += await wal(admin) - start
            start = await wal(admin)
            await client.finish(claimed, result)
            found["finish"] += await wal(admin) - start
        found["claim cpu"] = sum(client.cpu["claim"]) * 1000
        found["finish cpu"] = sum(client.cpu["finish"]) * 1000
        await admin.execute("vacuum public.jobs")
        found["disk"] = int(await admin.fetchval(SIZE))
        return {name: value / jobs for name, value in found.items()}
    finally:
        await client.close()
        await admin.close()


async def compare(dsns: dict[str, str], payload_size: int, result_size: int, jobs: int) -> Table:
    """Run all variants in turns; return their medians."""
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in dsns}
    for turn in range(ROUNDS):
        for name, dsn in dsns.items():
            for measure, value in (await run(dsn, payload_size, result_size, jobs)).items():
                if turn:  # the first is a warm-up
                    found[name][measure].append(value)
    table = Table(
        f"payload {payload_size:,} B, result {result_size:,} B",
        *("WAL create", "WAL claim", "WAL finish", "CPU claim", "CPU finish", "disk"),
        box=None,
    )
    for name, measures in found.items():
        middle = {measure: statistics.median(values) for measure, values in measures.items()}
        table.add_row(
            name,
            *(f"{middle[measure]:,.0f} B" for measure in ("create", "claim", "finish")),
            *(f"{middle[measure]:,.0f} µs" for measure in ("claim cpu", "finish cpu")),
            f"{middle['disk']:,.0f} B",
        )
    return table


async def main(sizes: list[tuple[int, int]], jobs: int) -> None:
    """Make a database per variant, compare them, print as it goes."""
    out = Console(highlight=False, width=140)
    async with running_server() as postgres:
        dsns = {}
        for number, (name, change) in enumerate(VARIANTS.items()):
            dsns[name] = await make_project(postgres, f"variant_{number}")
            connection = await asyncpg.connect(dsns[name])
            await connection.execute(change)
            await connection.close()
        for payload_size, result_size in sizes:
            out.print(await compare(dsns, payload_size, result_size, jobs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000, help="per variant and round")
    parser.add_argument(
        "--sizes", type=lambda text: tuple(map(int, text.split("/"))), nargs="*", help="payload/result"
    )
    given = parser.parse_args()
    asyncio.run(main(given.sizes or SIZES, given.jobs))
