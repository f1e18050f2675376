"""create_job: what is refused, what is made."""

import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tests.sql.harness import ALICE, BOB, NOON, fixture

BIG = "x" * 262_200


@fixture(autouse=True)
async def kinds(project):
    await project.queue("other")
    await project.kind("echo")
    await project.kind("internal", public=False)
    await project.kind("translate", credits_per_item=10)
    await project.kind("small", max_items=2)
    await project.grant(ALICE, 1000)


def nested(levels):
    """Return an object with so many levels of objects."""
    value = {}
    for _ in range(levels):
        value = {"x": value}
    return value


BAD = {
    "an unknown kind": ({"kind": "nonsense"}, "JQ001", "nonsense"),
    "no kind": ({"kind": None}, "JQ006", "kind is missing"),
    "an empty kind": ({"kind": ""}, "JQ001", "unknown kind"),
    "an endless kind": ({"kind": "k" * 5000}, "JQ001", "unknown kind"),
    "an unknown queue": ({"queue": "nowhere"}, "JQ002", "nowhere"),
    "an array as payload": ({"payload": [1]}, "JQ003", "array"),
    "a payload nested too deeply": ({"payload": nested(101)}, "JQ003", "more than 100 levels"),
    "an item's payload nested too deeply": (
        {"items": [{"key": "a", "payload": nested(101)}]},
        "JQ003",
        "more than 100 levels",
    ),
    "a string as payload": ({"payload": "text"}, "JQ003", "string"),
    "a number as payload": ({"payload": 5}, "JQ003", "number"),
    "no payload": ({"payload": None}, "JQ003", "null"),
    "a large payload": ({"payload": {"x": BIG}}, "JQ004", "262209"),
    "a duplicate item key": ({"items": ["de", "fr", "de"]}, "JQ005", "duplicate item key: de"),
    "too many items": ({"items": [str(n) for n in range(10_001)]}, "JQ005", "10001"),
    "more items than the kind allows": ({"kind": "small", "items": ["a", "b", "c"]}, "JQ005", "3, at most 2"),
    "items that are an object": ({"items": {"key": "de"}}, "JQ005", "object"),
    "items that are a string": ({"items": "de"}, "JQ005", "string"),
    "an empty item key": ({"items": ["de", ""]}, "JQ005", "item 2"),
    "a long item key": ({"items": ["k" * 201]}, "JQ005", "item 1"),
    "a number as item": ({"items": [7]}, "JQ005", "item 1"),
    "null as item": ({"items": [None]}, "JQ005", "item 1"),
    "an item without a key": ({"items": [{"payload": {}}]}, "JQ005", "item 1"),
    "an item whose key is a number": ({"items": [{"key": 5}]}, "JQ005", "item 1"),
    "an item with an unknown field": ({"items": [{"key": "de", "price": 0}]}, "JQ005", "price"),
    "an item whose payload is an array": ({"items": [{"key": "de", "payload": []}]}, "JQ005", "item 1"),
    "an item whose payload is null": ({"items": [{"key": "de", "payload": None}]}, "JQ005", "item 1"),
    "an item that is a huge bad value": ({"items": [{"key": "de", "junk": BIG}]}, "JQ005", "item 1"),
    "items that are too large": ({"items": [{"key": "de", "payload": {"x": BIG * 17}}]}, "JQ004", "items"),
    "no items for a price per item": ({"kind": "translate"}, "JQ005", "translate"),
    "an empty list of items for a price per item": ({"kind": "translate", "items": []}, "JQ005", "translate"),
    "an absurd priority": ({"priority": 1001}, "JQ006", "1001"),
    "an absurdly low priority": ({"priority": -1001}, "JQ006", "-1001"),
    "a negative number of attempts": ({"max_attempts": -1}, "JQ006", "-1"),
    "no attempts": ({"max_attempts": 0}, "JQ006", "0"),
    "too many attempts": ({"max_attempts": 101}, "JQ006", "101"),
    "a negative timeout": ({"timeout_seconds": -5}, "JQ006", "-5"),
    "no timeout at all": ({"timeout_seconds": 0}, "JQ006", "0"),
    "an endless timeout": ({"timeout_seconds": float("inf")}, "JQ006", "Infinity"),
    "a timeout that is not a number": ({"timeout_seconds": float("nan")}, "JQ006", "NaN"),
    "an absurd timeout": ({"timeout_seconds": 10**30}, "JQ006", "1000000"),
    "a far future": ({"run_at": NOON + timedelta(days=3660)}, "JQ006", "2036"),
    "a start at the end of time": ({"run_at": datetime.max.replace(tzinfo=UTC)}, "JQ006", "infinity"),
    "a start before time": ({"run_at": datetime.min.replace(tzinfo=UTC)}, "JQ006", "infinity"),
    "an empty idempotency key": ({"idempotency_key": ""}, "JQ006", "idempotency_key"),
    "a long idempotency key": ({"idempotency_key": "k" * 201}, "JQ006", "201"),
    "an empty unique key": ({"unique_key": ""}, "JQ006", "unique_key"),
    "a long unique key": ({"unique_key": "k" * 201}, "JQ006", "201"),
    "too many tags": ({"tags": ["t"] * 21}, "JQ006", "21"),
    "an empty tag": ({"tags": [""]}, "JQ006", "tag"),
    "a long tag": ({"tags": ["t" * 101]}, "JQ006", "101"),
    "a null tag": ({"tags": ["t", None]}, "JQ006", "tag"),
    "tags of tags": ({"tags": [["a", "b"], ["c", "d"]]}, "JQ006", "tags"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("by", [ALICE, "service_role"], ids=["user", "service"])
async def test_bad_input_is_refused_with_its_value_and_changes_nothing(project, case, by):
    arguments, code, word = BAD[case]
    if by != ALICE:
        arguments = arguments | {"owner_id": ALICE}
    balance = await project.balance(ALICE)

    async with project.refused(code, word):
        await project.create(**({"kind": "echo"} | arguments), by=by)

    assert await project.balance(ALICE) == balance


async def test_the_largest_payload_allowed_is_taken(project):
    payload = {"x": "x" * (262_144 - len('{"x": ""}'))}
    job = await project.create("echo", payload=payload)
    assert job["payload"] == payload


async def test_a_payload_is_measured_in_bytes_not_characters(project):
    async with project.refused("JQ004", "bytes"):
        await project.create("echo", payload={"x": "ü" * 140_000})


async def test_a_minimal_job_has_the_defaults_of_its_queue(project):
    await project.queue("default", max_attempts=7)
    job = await project.create("echo", by=ALICE)
    assert (job["status"], job["queue"], job["owner_id"]) == ("pending", "default", str(ALICE))
    assert (job["max_attempts"], job["priority"], job["payload"], job["tags"]) == (7, 0, {}, [])
    assert (job["attempt"], job["failures"], job["credits_held"]) == (0, 0, 0)
    assert datetime.fromisoformat(job["run_at"]) == NOON


async def test_everything_that_was_asked_for_is_written(project):
    job = await project.create(
        "echo",
        by="service_role",
        owner_id=BOB,
        payload={"big": 12345678901234567890, "exact": 0.1},
        items=["de", {"key": "fr", "payload": {"formal": True}}],
        queue="other",
        priority=5,
        run_at=NOON + timedelta(hours=1),
        max_attempts=2,
        timeout_seconds=1.5,
        tags=["a", "b"],
        unique_key="u",
        idempotency_key="i",
    )
    job = await project.job(job)
    assert job["payload"] == {"big": 12345678901234567890, "exact": 0.1}
    assert (job["queue"], job["priority"], job["max_attempts"], job["tags"]) == ("other", 5, 2, ["a", "b"])
    assert (job["timeout"], job["items_total"], job["owner_id"]) == ("00:00:01.5", 2, str(BOB))
    items = await project.items(job)
    assert [(i["key"], i["position"], i["payload"], i["status"]) for i in items.values()] == [
        ("de", 1, {}, "pending"),
        ("fr", 2, {"formal": True}, "pending"),
    ]


async def test_a_run_at_in_the_past_is_due_now(project):
    job = await project.create("echo", run_at=NOON - timedelta(days=30))
    [claimed] = await (await project.worker()).claim()
    assert claimed["id"] == job["id"]


async def test_ids_sort_by_time_of_creation(project):
    jobs = []
    for _ in range(3):
        jobs.append(await project.create("echo"))
        await project.sql("select pg_sleep(0.002)")
    ids = [job["id"] for job in jobs]
    assert ids == sorted(ids)
    assert {job_id[14] for job_id in ids} == {"7"}


async def test_a_user_cannot_name_another_owner(project):
    async with project.refused("JQ010", "owner_id is not yours"):
        await project.create("echo", by=ALICE, owner_id=BOB)


async def test_a_user_may_name_oneself(project):
    job = await project.create("echo", by=ALICE, owner_id=ALICE)
    assert job["owner_id"] == str(ALICE)


async def test_a_token_without_a_user_creates_nothing(project):
    async with project.refused("JQ010", "signed-in"):
        await project.create("echo", by="authenticated", owner_id=ALICE)


async def test_an_internal_kind_looks_unknown_to_a_user(project):
    messages = []
    for kind in ("internal", "nonsense"):
        with pytest.raises(Exception, match="unknown kind") as caught:
            await project.create(kind, by=ALICE)
        messages.append((str(caught.value).replace(kind, "…"), caught.value.detail, caught.value.hint))
    assert messages[0] == messages[1]


async def test_the_service_may_create_an_internal_kind(project):
    job = await project.create("internal", by="service_role", owner_id=ALICE)
    assert job["kind"] == "internal"


async def test_a_user_cannot_choose_another_queue(project):
    async with project.refused("JQ010", "echo run in queue default"):
        await project.create("echo", by=ALICE, queue="other")


async def test_a_user_may_name_the_kinds_own_queue(project):
    job = await project.create("echo", by=ALICE, queue="default")
    assert job["queue"] == "default"


async def test_insufficient_credits_create_nothing_and_say_what_was_needed_and_there(project):
    await project.grant(BOB, 19)
    async with project.refused("PT402", "20 needed", "19 available"):
        await project.create("translate", by=BOB, items=["de", "fr"])
    assert await project.balance(BOB) == (19, 0, 0)


async def test_an_owner_without_an_account_has_no_credits(project):
    async with project.refused("PT402", "10 needed", "0 available"):
        await project.create("translate", by=BOB, items=["de"])


async def test_items_are_reserved_at_the_kinds_price(project):
    job = await project.create("translate", by=ALICE, items=["de", "fr", "it"])
    assert job["credits_held"] == 30
    assert await project.balance(ALICE) == (970, 30, 0)
    assert await project.faults() == []


async def test_a_price_per_job_does_not_depend_on_the_items(project):
    await project.kind("report", credits_per_job=7)
    assert (await project.create("report", by=ALICE, items=["a", "b"]))["credits_held"] == 7
    assert (await project.create("report", by=ALICE))["credits_held"] == 7
    assert await project.faults() == []


async def test_a_free_kind_needs_no_account(project):
    job = await project.create("echo", by=BOB, items=["a"])
    assert job["credits_held"] == 0
    assert await project.sql("select count(*) from public.credit_holds where job_id = $1", job["id"]) == 0


async def test_a_job_of_nobody_costs_nothing(project):
    job = await project.create("translate", items=["de"])
    assert (job["owner_id"], job["credits_held"]) == (None, 0)


async def test_the_highest_price_of_the_largest_job_is_exact(project):
    await project.kind("gold", credits_per_item=1_000_000_000)
    for n in range(11):
        await project.grant(BOB, 1_000_000_000_000, reason=f"grant {n}")
    job = await project.create("gold", by=BOB, items=[str(n) for n in range(10_000)])
    assert job["credits_held"] == 10_000_000_000_000
    assert await project.balance(BOB) == (1_000_000_000_000, 10_000_000_000_000, 0)


async def test_ten_thousand_items_are_created_in_seconds(project, record_property):
    started = time.perf_counter()
    job = await project.create(
        "echo", by=ALICE, items=[{"key": f"k{n}", "payload": {"n": n}} for n in range(10_000)]
    )
    seconds = time.perf_counter() - started
    record_property("seconds", round(seconds, 3))
    assert job["items_total"] == 10_000
    assert len(await project.items(job)) == 10_000
    assert seconds < 10


async def test_a_trigger_of_the_application_creates_jobs_in_its_transaction(project):
    await project.connection.execute("""
        create table public.cards (id int primary key, owner_id uuid);
        grant insert on public.cards to authenticated;
        create function public.translate_card() returns trigger language plpgsql set search_path = '' as $$
        begin
          perform public.create_job('translate', jsonb_build_object('card', new.id), '["de"]',
            idempotency_key => new.id::text);
          return new;
        end $$;
        create trigger translate_card after insert on public.cards
          for each row execute function public.translate_card();
    """)
    async with project.acting(ALICE):
        await project.sql("insert into public.cards values (1, $1), (2, $1)", ALICE)
    rows = await project.rows("select owner_id, payload from public.jobs order by payload ->> 'card'")
    assert rows == [
        {"owner_id": ALICE, "payload": {"card": 1}},
        {"owner_id": ALICE, "payload": {"card": 2}},
    ]
    assert await project.balance(ALICE) == (980, 20, 0)


async def test_a_trigger_refuses_the_row_that_its_owner_cannot_pay(project):
    await project.connection.execute("""
        create table public.cards (id int primary key);
        grant insert on public.cards to authenticated;
        create function public.translate_card() returns trigger language plpgsql set search_path = '' as $$
        begin perform public.create_job('translate', '{}', '["de"]'); return new; end $$;
        create trigger translate_card after insert on public.cards
          for each row execute function public.translate_card();
    """)
    async with project.refused("PT402", "10 needed"), project.acting(BOB):
        await project.sql("insert into public.cards values (1)")
    assert await project.sql("select count(*) from public.cards") == 0


async def test_a_rolled_back_caller_creates_nothing_and_reserves_nothing(database):
    project, other = await database.project(), await database.project()
    await project.kind("translate", credits_per_item=10)
    await project.grant(ALICE, 100)
    transaction = project.connection.transaction()
    await transaction.start()
    await project.create("translate", by=ALICE, items=["de"], idempotency_key="k")
    await transaction.rollback()

    assert await other.sql("select count(*) from public.jobs") == 0
    assert await other.balance(ALICE) == (100, 0, 0)
    assert (await other.create("translate", by=ALICE, items=["fr"], idempotency_key="k"))[
        "credits_held"
    ] == 10


async def test_a_request_id_that_does_not_exist_is_not_a_job(project):
    async with project.refused("JQ008"):
        await project.cancel({"id": str(uuid4())}, by=ALICE)
