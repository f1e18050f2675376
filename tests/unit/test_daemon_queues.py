"""The queues a daemon is told to work on."""

import pytest

from processor import JobContext, Processor
from processor.assignment import assign
from processor.errors import ConfigError


def shop() -> Processor:
    app = Processor()

    @app.job("send", queue="mail")
    async def send(job: JobContext[dict]) -> None: ...

    @app.job("pack", queue="shop")
    async def pack(job: JobContext[dict]) -> None: ...

    app.schedule("daily", "0 3 * * *", kind="pack")
    return app


@pytest.mark.parametrize("queues", [("mial",), ("mail", "mial")])
def test_a_queue_without_a_handler_is_refused_even_beside_one_that_has_some(queues):
    with pytest.raises(ConfigError, match=r"no handler works on mial\. The handlers' queues: mail, shop"):
        assign(shop(), queues)


def test_an_application_without_handlers_is_refused_with_the_way_to_declare_one():
    with pytest.raises(ConfigError, match=r"no handlers\. Declare one with @app\.job"):
        assign(Processor())


def test_a_daemon_that_is_told_nothing_works_on_all_queues_of_its_handlers():
    work = assign(shop())
    assert work.queues == ("mail", "shop")
    assert work.kinds == {"send", "pack"}


def test_a_daemon_of_some_queues_runs_the_schedules_of_their_kinds_only():
    assert [schedule.name for schedule in assign(shop(), ["shop"]).schedules] == ["daily"]
    assert assign(shop(), ["mail"]).schedules == ()
