"""The queues a daemon is told to work on."""

import pytest

from processor import JobContext, Processor
from processor.config import Settings
from processor.daemon import Daemon
from processor.errors import ConfigError


@pytest.mark.parametrize("queues", [("mial",), ("mail", "mial")])
def test_a_queue_without_a_handler_is_refused_even_beside_one_that_has_some(queues):
    app = Processor()

    @app.job("send", queue="mail")
    async def send(job: JobContext[dict]) -> None: ...

    settings = Settings(url="http://127.0.0.1:9", key="secret", queues=queues)
    with pytest.raises(ConfigError, match=r"no handler works on mial\. The handlers' queues: mail"):
        Daemon(app, settings)
