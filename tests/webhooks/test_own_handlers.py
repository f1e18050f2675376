"""What a daemon works on when it delivers webhooks, and what it says when it cannot."""

import sys
from ipaddress import ip_network
from uuid import uuid4

import pytest

from processor import JobContext, Processor
from processor.assignment import assign
from processor.config import Settings, load
from processor.errors import ConfigError
from processor.webhooks import delivering

PROJECT = {"SUPABASE_URL": "https://abcdefgh.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_x"}


def settings(**environment: str) -> Settings:
    return load(environment={**PROJECT, **environment})


def own() -> Processor:
    app = delivering(settings(PROCESSOR_WEBHOOKS="true"), uuid4(), lambda: pytest.fail("nobody is asked"))
    assert app is not None
    return app


def shop(kind: str = "sell", queue: str = "shop") -> Processor:
    app = Processor()

    @app.job(kind, queue=queue)
    async def sell(job: JobContext) -> None:
        """Sell."""

    return app


def test_by_default_a_daemon_delivers_nothing() -> None:
    assert delivering(settings(), uuid4(), lambda: pytest.fail("nobody is asked")) is None


def test_deliveries_have_a_queue_aside_whatever_queues_are_named() -> None:
    for queues in ([], ["shop"]):
        work = assign(shop(), queues, own())
        assert (work.queues, work.main, work.aside) == (("shop", "webhooks"), ("shop",), ("webhooks",))
        assert work.kinds == {"sell", "webhook.deliver"}


def test_rules_and_middleware_of_an_application_are_not_for_deliveries() -> None:
    app, ours = shop(), own()
    work = assign(app, (), ours)
    assert work.apps == {"sell": app, "webhook.deliver": ours}
    assert not ours.middlewares


def test_an_application_without_handlers_may_be_there_to_deliver() -> None:
    assert assign(Processor(), (), own()).main == ()


def test_an_application_with_a_kind_of_that_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"webhook\.deliver is the daemon's own kind of job: rename"):
        assign(shop("webhook.deliver"), (), own())


def test_the_library_that_signs_is_asked_for_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "processor.webhooks.sender", None)
    with pytest.raises(ConfigError, match=r"PROCESSOR_WEBHOOKS: .*supabase-job-processor\[webhooks\]"):
        own()


def test_networks_are_read_as_routers_write_them() -> None:
    allowed = settings(PROCESSOR_WEBHOOK_ALLOW="10.1.0.0/16, fd00::/8,127.0.0.1").webhook_allow
    assert allowed == (ip_network("10.1.0.0/16"), ip_network("fd00::/8"), ip_network("127.0.0.1/32"))


@pytest.mark.parametrize("wrong", ["10.1.2.3/16", "inside.example.com", "10.0.0.0/33", "10.0.0.0-10.0.0.9"])
def test_what_is_no_network_is_refused_with_an_example(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"PROCESSOR_WEBHOOK_ALLOW: .* must look like 10\.1\.0\.0/16"):
        settings(PROCESSOR_WEBHOOK_ALLOW=wrong)
