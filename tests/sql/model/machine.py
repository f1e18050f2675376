"""The database and the model side by side: one call goes to both, then all rows are compared."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import asyncpg
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.sql.harness import NOON, Project, connect
from tests.sql.model.world import (
    ACCOUNT_COLUMNS,
    ITEM_COLUMNS,
    JOB_COLUMNS,
    NEVER,
    WORKER_COLUMNS,
    Refused,
    Row,
    World,
)

T = TypeVar("T")

# A program must do the same each time it is replayed: ids count up, a claim shuffles the queues by its own id
REPRODUCIBLE = """
    set local jit = off;  -- where it is installed it would take most of the time
    create sequence processor.model_ids;
    create or replace function processor.uuid7() returns uuid language sql volatile set search_path = '' as $$
      select ('00000000-0000-7000-8000-' || lpad(to_hex(nextval('processor.model_ids')), 12, '0'))::uuid
    $$;
    do $$
    begin
      execute replace(pg_get_functiondef('public.claim_jobs'::regproc),
        'order by random()', 'order by md5(request_id || name)');
    end
    $$;
"""
RESTART = "select setval('processor.model_ids', 1, false)"

# not wider: Hypothesis prefers small numbers then
DICE = st.integers(0, 127)

INTERVALS = {"timeout", "lease"}


def _pairs(columns: tuple[str, ...]) -> str:
    return ", ".join(f"'{c}', " + (f"extract(epoch from {c})" if c in INTERVALS else c) for c in columns)


# everything in one row: what is compared after each act should cost one question
EVERYTHING = f"""
    select
      (select jsonb_agg(jsonb_build_object({_pairs(JOB_COLUMNS)}, 'errors', errors))
        from public.jobs) as jobs,
      (select jsonb_agg(jsonb_build_object('job_id', job_id, {_pairs(ITEM_COLUMNS)}) order by position)
        from public.job_items) as items,
      (select jsonb_agg(jsonb_build_object({_pairs(WORKER_COLUMNS)})) from public.job_workers) as workers,
      (select jsonb_agg(jsonb_build_object('owner_id', owner_id, {_pairs(ACCOUNT_COLUMNS)}))
        from public.credit_accounts) as accounts,
      (select jsonb_agg(e) from (
        select owner_id, kind, sum(amount) as amount from public.credit_entries group by 1, 2) e) as journal,
      (select jsonb_agg(jsonb_build_array(owner_id, amount, remaining, priority, expires_at) order by id)
        from public.credit_lots) as lots,
      (select jsonb_agg(c) from processor.check_credits() c) as faults
"""
QUEUES = "select name, paused, max_processing, rate_limit from public.job_queues"
KINDS = "select kind, public, credits_per_job, credits_per_item from public.job_kinds"
TICKETS = "select job_id, array_agg(unit order by unit) as units from public.credit_captures group by 1"
LOGS = "select job_id, count(*) as lines from public.job_logs group by 1"
BUCKETS = "select queue, tokens, counted_at from processor.queue_tokens"
STATEMENT = """
    select owner_id, sum(change)::bigint as change, (array_agg(balance order by id desc))[1] as balance,
      (array_agg(balance - change order by id))[1] as before
    from public.credit_statement group by 1
"""
HEALTH = (
    "select queue, paused, due, scheduled, waiting, processing from processor.queue_health order by queue"
)


class Arena:
    """A connection of its own, in a transaction that never commits, with a loop to wait for its answers."""

    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.project = Project(self.wait(connect(dsn)))
        self.transaction = self.project.connection.transaction()
        self.wait(self.transaction.start())
        self.wait(self.project.connection.execute(REPRODUCIBLE))
        self.schema_version: int = self.wait(self.project.sql("select processor.schema_version()"))

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def close(self) -> None:
        self.wait(self.transaction.rollback())
        self.wait(self.project.connection.close())
        self.loop.close()


def run_programs(
    machine: type["Machine"],
    arena: Arena,
    number: int,
    *,
    inclined: tuple[str, ...] = (),
    shorten: bool = False,
) -> None:
    """Run the programs that this number stands for, each of seventy acts; ``shorten`` the one that fails.

    Each program is inclined to two acts that it draws, or to those given: it does them more often.

    After eleven (nine, and two that rest) Hypothesis would only vary those it has: take another number.
    """
    run_state_machine_as_test(
        seed(number)(type(f"Program{number}", (machine,), {"arena": arena, "inclined": inclined})),
        settings=settings(
            max_examples=11,
            stateful_step_count=70,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink) if shorten else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


@contextmanager
def arena(dsn: str) -> Iterator[Arena]:
    opened = Arena(dsn)
    try:
        yield opened
    finally:
        opened.close()


class Machine(RuleBasedStateMachine):
    """One example: a savepoint that is rolled back, a world at noon; the rules are in the subclasses."""

    arena: ClassVar[Arena]
    acts: ClassVar[dict[str, int]]
    """Names of methods, and how often each is chosen."""
    inclined: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.project = self.arena.project
        self.wait = self.arena.wait
        self.world = World(NOON)
        self.chances = [act for act, often in self.acts.items() for _ in range(often)]
        self.transaction = self.project.connection.transaction()
        self.wait(self.transaction.start())
        self.wait(self.project.sql(RESTART))
        self.wait(self.project.at(NOON))

    def teardown(self) -> None:
        self.wait(self.transaction.rollback())

    # drawing

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        """Do something: one rule for all acts, as Hypothesis leaves out most of many in each program."""
        self.data = data
        act = self.pick("rest", *self.chances)
        getattr(self, act)()
        if act != "rest":
            self.every_row_is_as_the_model_says()

    def pick(self, *choices: T) -> T:
        """Draw one of these; the same dice for all, so that a program still means something once changed."""
        return choices[self.data.conjecture_data.draw(DICE) % len(choices)]

    def chance(self, one_in: int) -> bool:
        """Draw whether something seldom happens."""
        return self.pick(*(False,) * (one_in - 1), True)

    # asking both

    def both(
        self, predict: Callable[..., T], function: str, /, *, by: UUID | str | None = None, **arguments: Any
    ) -> tuple[T, Any] | None:
        """Call a function; return what the model expected and what came; None if both refused."""
        knows_the_caller = function in {"create_job", "create_jobs", "cancel_job", "retry_job"}
        return self.compared(
            lambda: predict(self.world, **({"by": by} if knows_the_caller else {}), **arguments),
            f"{'' if '.' in function else 'public.'}{function}",
            by=by,
            **arguments,
        )

    def compared(
        self, predict: Callable[[], T], function: str, /, *, by: UUID | str | None = None, **arguments: Any
    ) -> tuple[T, Any] | None:
        note(f"{function} by {by}: {arguments}")
        refused: str | None = None
        expected: T | None = None
        try:
            expected = predict()
        except Refused as refusal:
            refused = refusal.code
        call = self.call(function, by, arguments, safely=refused is not None)
        try:
            answer = self.wait(call)
        except asyncpg.PostgresError as error:
            if error.sqlstate == refused:
                return None
            raise AssertionError(
                f"expected {refused or 'an answer'}, but {error.sqlstate}: {error}"
            ) from error
        assert refused is None, f"expected {refused}, but {answer}"
        if self.world.new:
            ids = self.rows(
                "select id from public.jobs where not id = any ($1) order by id", list(self.world.jobs)
            )
            self.world.adopt([row["id"] for row in ids])
        return expected, answer  # type: ignore[return-value] - it was predicted, or refused

    async def call(self, function: str, by: UUID | str | None, arguments: Row, *, safely: bool) -> Any:
        """Call a function as somebody, asking the server seldom; ``safely``: what is refused is undone."""
        connection = self.project.connection
        names = ", ".join(f'"{name}" => ${number}' for number, name in enumerate(arguments, 1))
        before = ["savepoint call"] if safely else []
        after = ["release savepoint call"] if safely else []
        if by:
            role = by if isinstance(by, str) else "authenticated"
            claims = json.dumps({"role": role} | ({"sub": str(by)} if isinstance(by, UUID) else {}))
            before += [f"set local role {role}", f"set local request.jwt.claims = '{claims}'"]
            after += ["reset role", "set local request.jwt.claims = ''"]
        if before:
            await connection.execute("; ".join(before))
        try:
            answer = await connection.fetchval(
                f"select to_jsonb(f) from {function}({names}) f", *arguments.values()
            )
        except asyncpg.PostgresError:
            if safely:
                await connection.execute("rollback to savepoint call")
            raise
        if after:
            await connection.execute("; ".join(after))
        return answer

    def same(self, predict: Callable[..., Any], function: str, **arguments: Any) -> None:
        """Call a function whose whole answer the model knows."""
        if both := self.both(predict, function, **arguments):
            expected, answer = both
            agree(function, answer, expected)

    # comparing all there is

    def rows(self, query: str, *arguments: Any) -> list[Row]:
        return self.wait(self.project.rows(query, *arguments))

    def every_row_is_as_the_model_says(self) -> None:
        world = self.world
        [there] = self.rows(EVERYTHING)
        agree("check_credits()", there["faults"], None)
        items: dict[str, list[Row]] = {}
        for row in there["items"] or []:
            items.setdefault(row.pop("job_id"), []).append(row)
        jobs = {row["id"]: row for row in there["jobs"] or []}
        agree("the jobs", sorted(jobs), sorted(str(job_id) for job_id in world.jobs))
        for job_id, job in world.jobs.items():
            row = jobs[str(job_id)]
            errors = [(e["attempt"], e["code"]) for e in row.pop("errors")]
            agree(
                f"job {job_id}", row | {"errors": errors}, _columns(job, JOB_COLUMNS) | {"errors": job.errors}
            )
            expected = [_columns(i, ITEM_COLUMNS) for i in job.items.values()]
            agree(f"the items of job {job_id}", items.get(str(job_id), []), expected)
        workers = {row["id"]: row for row in there["workers"] or []}
        agree("workers", workers, {str(w.id): _columns(w, WORKER_COLUMNS) for w in world.workers.values()})
        accounts = {row.pop("owner_id"): row for row in there["accounts"] or []}
        agree("accounts", accounts, {str(owner): vars(a) for owner, a in world.ledger.accounts.items()})
        lots = [
            [_plain(value) for value in (lot.owner, lot.amount, lot.remaining, lot.priority, lot.expires_at)]
            for lot in world.ledger.lots
        ]
        agree("lots", there["lots"] or [], lots)
        journal = {(row["owner_id"], row["kind"]): row["amount"] for row in there["journal"] or []}
        agree("journal", journal, {(str(o), kind): sum_ for (o, kind), sum_ in world.ledger.journal.items()})

    def rest(self) -> None:
        """Do nothing: what the simplest programs do, and those that are made short."""

    def look_around(self) -> None:
        """Compare now and then what changes seldom, or follows from the rest."""
        world = self.world
        queues = {q.name: (q.paused, q.max_processing, q.rate_limit) for q in world.queues.values()}
        agree("queues", {row.pop("name"): tuple(row.values()) for row in self.rows(QUEUES)}, queues)
        buckets = {q.name: q.bucket for q in world.queues.values() if q.bucket}
        rows = {row["queue"]: (row["tokens"], row["counted_at"]) for row in self.rows(BUCKETS)}
        agree("token buckets", rows, buckets)
        turns = {q.name: q.turn for q in world.queues.values() if q.turn}
        rows = {row["queue"]: (row["owner_id"],) for row in self.rows("select * from processor.queue_turns")}
        agree("turns", rows, turns)
        kinds = {k.kind: (k.public, k.credits_per_job, k.credits_per_item) for k in world.kinds.values()}
        agree("kinds", {row.pop("kind"): tuple(row.values()) for row in self.rows(KINDS)}, kinds)
        agree("logs", {row["job_id"]: row["lines"] for row in self.rows(LOGS)}, dict(world.log_counts()))
        tickets = {j.id: sorted(j.hold.tickets) for j in world.jobs.values() if j.hold and j.hold.tickets}
        agree("tickets", {row["job_id"]: row["units"] for row in self.rows(TICKETS)}, tickets)
        told = {row.pop("owner_id"): tuple(row.values()) for row in self.rows(STATEMENT)}
        agree("statement", told, {o: (a.available, a.available, 0) for o, a in world.ledger.accounts.items()})
        health = [
            (
                name,
                world.queues[name].paused,
                sum(j.run_at <= world.now for j in world.waiting(name)),
                sum(world.now < j.run_at < NEVER for j in world.waiting(name)),
                sum(j.run_at == NEVER for j in world.waiting(name)),
                len(world.running(name)),
            )
            for name in world.queue_names()
        ]
        agree("queue_health", [tuple(row.values()) for row in self.rows(HEALTH)], health)


def agree(what: str, found: Any, expected: Any) -> None:
    """Fail if the database found something else than the model expected, and say in what they differ."""
    if found == expected:
        return
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [k for k in {*found, *expected} if found.get(k) != expected.get(k)]
        found, expected = ({k: side.get(k) for k in keys} for side in (found, expected))
    raise AssertionError(f"{what}: the database has {found}, the model {expected}")


def _columns(row: object, names: tuple[str, ...]) -> Row:
    return {name: _plain(getattr(row, name)) for name in names}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else value


def moment(text: str | None) -> datetime | None:
    """Read a time in an answer."""
    return None if text is None else datetime.fromisoformat(text)
