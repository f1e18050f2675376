"""What a job was created within: the trace of an argument, a parent or the request's headers."""

import json

import pytest

from tests.sql.harness import ALICE, fence, fixture

TRACE = "0af7651916cd43dd8448eb211c80319c"
HERE = f"00-{TRACE}-b7ad6b7169203331-01"
THERE = f"00-{TRACE[::-1]}-00f067aa0ba902b7-01"
CREATED = {"traceparent": HERE, "tracestate": "vendor=1"}


@fixture(autouse=True)
async def kinds(project):
    await project.kind("echo")


async def requested_with(project, **headers):
    """Let what follows be part of an HTTP request, as PostgREST says it."""
    await project.sql("select set_config('request.headers', $1, true)", json.dumps(headers))


async def context_of(project, job_id):
    return await project.sql("select trace_context from public.jobs where id = $1", job_id)


@pytest.mark.parametrize("by", [ALICE, "service_role"])
async def test_it_is_kept_and_comes_with_the_claim(project, by):
    job = await project.create(trace_context=CREATED, by=by)
    assert job["trace_context"] == CREATED
    [claimed] = await (await project.worker()).claim()
    assert claimed["trace_context"] == CREATED


async def test_a_job_that_nobody_traces_has_none(project):
    assert (await project.create())["trace_context"] is None
    assert (await project.create(trace_context={}))["trace_context"] is None
    made = await project.call("create_jobs", jobs=[{"kind": "echo", "trace_context": x} for x in ({}, None)])
    assert [await context_of(project, job["id"]) for job in made] == [None, None]


GARBAGE = {
    "a text": HERE,
    "a number": 5,
    "an array": [HERE],
    "no traceparent": {"tracestate": "vendor=1"},
    "a traceparent of another kind": {"traceparent": 5},
    "nonsense": {"traceparent": "nonsense"},
    "upper case": {"traceparent": HERE.upper()},
    "no trace": {"traceparent": f"00-{'0' * 32}-b7ad6b7169203331-01"},
    "no span": {"traceparent": f"00-{TRACE}-{'0' * 16}-01"},
    "a version that is forbidden": {"traceparent": "ff" + HERE[2:]},
    "more than it has": {"traceparent": HERE + "-00"},
    "a line more": {"traceparent": HERE + "\n"},
    "an endless one": {"traceparent": HERE * 10_000},
    "a tracestate of another kind": {"traceparent": HERE, "tracestate": {}},
}


@pytest.mark.parametrize("case", GARBAGE)
async def test_an_argument_that_is_no_trace_context_is_refused(project, case):
    async with project.refused("JQ006", "trace_context is no trace context"):
        await project.create(trace_context=GARBAGE[case], by=ALICE)
    await requested_with(project, traceparent=HERE)
    async with project.refused("JQ006", "trace_context is no trace context"):
        await project.call("create_jobs", jobs=[{"kind": "echo", "trace_context": GARBAGE[case]}])


@pytest.mark.parametrize("state", ["s" * 513, "v=ü", "a\nb", ""], ids=["long", "foreign", "lines", "empty"])
async def test_a_tracestate_beyond_the_standard_costs_the_state_and_not_the_job(project, state):
    job = await project.create(trace_context={"traceparent": HERE, "tracestate": state})
    assert job["trace_context"] == {"traceparent": HERE}


async def test_whatever_else_a_library_injects_is_not_kept(project):
    job = await project.create(trace_context=CREATED | {"baggage": "user=alice", "b3": "0"})
    assert job["trace_context"] == CREATED


# -- the request's headers ------------------------------------------------------------------------


async def test_without_an_argument_it_is_the_requests(project):
    await requested_with(project, traceparent=HERE, tracestate="vendor=1", host="abc.supabase.co")
    assert (await project.create(by=ALICE))["trace_context"] == CREATED
    made = await project.call("create_jobs", jobs=[{"kind": "echo"}] * 2, by="service_role")
    assert [await context_of(project, job["id"]) for job in made] == [CREATED, CREATED]


async def test_an_argument_wins_over_the_header(project):
    await requested_with(project, traceparent=THERE)
    assert (await project.create(trace_context=CREATED))["trace_context"] == CREATED


@pytest.mark.parametrize(
    "value",
    [
        "nonsense",
        "",
        HERE.upper(),
        HERE * 1000,
        "\u00fc",
        '","',
        HERE + '"',
        f"00-{TRACE}-b7ad6b7169203331-00",
    ],
    ids=["nonsense", "empty", "upper", "endless", "foreign", "quotes", "torn", "not sampled"],
)
async def test_a_header_that_is_no_sampled_traceparent_is_passed_over(project, value):
    await requested_with(project, traceparent=value, tracestate="vendor=1")
    assert (await project.create(by=ALICE))["trace_context"] is None


@pytest.mark.parametrize(
    "text", ["", '"traceparent"', f'{{"traceparent": ["{HERE}"]}}', '{"x": "\\"traceparent\\": \\"']
)
async def test_headers_of_any_form_cost_no_job(project, text):
    await project.sql("select set_config('request.headers', $1, true)", text)
    assert (await project.create(by=ALICE))["trace_context"] is None


async def test_what_another_header_says_is_not_taken_for_the_trace(project):
    await requested_with(project, **{"x-note": f'"traceparent":"{HERE}"', "x-traceparent": HERE})
    assert (await project.create())["trace_context"] is None


async def test_a_header_with_quotes_in_its_state_loses_the_state(project):
    await requested_with(project, traceparent=HERE, tracestate='v="1"')
    assert (await project.create())["trace_context"] == {"traceparent": HERE}


# -- families, repetitions, schedules -------------------------------------------------------------


async def test_children_have_their_parents_unless_they_are_given_their_own(project):
    await requested_with(project, traceparent=THERE)
    own = {"traceparent": HERE[:-2] + "00"}
    leaf = {"kind": "echo"}
    parent = await project.create(
        trace_context=CREATED, children=[leaf | {"children": [leaf]}, leaf | {"trace_context": own}]
    )
    rows = await project.rows(
        "select trace_context from public.jobs where id <> $1 order by id", parent["id"]
    )
    assert [row["trace_context"] for row in rows].count(CREATED) == 2
    assert [row["trace_context"] for row in rows].count(own) == 1


async def test_spawned_children_have_their_parents(project):
    await project.create(trace_context=CREATED)
    worker = await project.worker()
    [job] = await worker.claim()
    wanted = [{"kind": "echo"}, {"kind": "echo", "trace_context": {"traceparent": THERE}}]
    answer = await worker._call("spawn_jobs", parent=fence(job), jobs=wanted)
    made = [await context_of(project, child["id"]) for child in answer["jobs"]]
    assert made == [CREATED, {"traceparent": THERE}]


async def test_the_first_children_of_a_call_leave_the_others_nothing(project):
    parent = await project.create(trace_context=CREATED)
    jobs = [{"kind": "echo", "parent_id": parent["id"]}, {"kind": "echo"}]
    made = await project.call("create_jobs", jobs=jobs)
    assert [await context_of(project, job["id"]) for job in made] == [CREATED, None]


@pytest.mark.parametrize("options", [{}, {"all_items": True}], ids=["open", "all"])
@pytest.mark.parametrize("created", [CREATED, None], ids=["traced", "not traced"])
async def test_a_repetition_has_what_it_repeats(project, options, created):
    job = await project.create(by=ALICE, trace_context=created)
    await project.cancel(job, by=ALICE)
    await requested_with(project, traceparent=THERE)
    again = await project.retry(job, by=ALICE, **options)
    assert again["id"] != job["id"]
    assert again["trace_context"] == created


async def test_the_same_key_within_another_trace_is_the_same_job(project):
    first = await project.create(idempotency_key="k", trace_context=CREATED)
    again = await project.create(idempotency_key="k", trace_context={"traceparent": THERE})
    assert again["id"] == first["id"]
    assert again["trace_context"] == CREATED


async def test_a_schedules_job_has_none_whoever_moves_the_schedule(project):
    await project.sql(
        "insert into public.job_schedules (name, cron, kind) values ('nightly', '0 3 * * *', 'echo')"
    )
    worker = await project.worker()
    await requested_with(project, traceparent=THERE)
    await worker._call(
        "run_due_schedules", ticks=[{"name": "nightly", "tick": None, "next": "2026-01-01T03:00:00Z"}]
    )
    await project.sql("update public.job_schedules set next_run_at = processor.now()")
    tick = (await project.now()).isoformat()
    answer = await worker._call(
        "run_due_schedules", ticks=[{"name": "nightly", "tick": tick, "next": "2027-01-01T03:00:00Z"}]
    )
    assert [await context_of(project, job_id) for job_id in answer["created"]] == [None]
