"""What happens in a daemon, told to an MQTT broker, and commands from there.

Nothing here holds a job up: what the broker does not take waits, the ends of jobs on disk, and what is lost
with a process is read from the database.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any
from uuid import UUID

from prometheus_client.core import Metric

from processor.config import Settings
from processor.errors import ConfigError
from processor.events.bus import Bus
from processor.figures import Figures
from processor.hold import Hold
from processor.rpc import Rpc
from processor.service import Background
from processor.settle import Settler
from processor.worker import Worker


class Silence:
    """For a daemon that has no broker: does nothing."""

    async def start(self) -> None:
        """Begin to listen to the bus, and to connect."""

    async def registered(self) -> None:
        """Hear that the project knows the worker."""

    async def flush(self, seconds: float) -> None:
        """Wait, at most so long, until the broker has taken the ends of all jobs."""

    async def close(self) -> None:
        """Say goodbye to the broker, and keep what it has not taken."""

    @property
    def status(self) -> dict[str, Any] | None:
        """What it is doing, for /status."""
        return None

    def collect(self) -> Iterable[Metric]:
        """Return it as metrics."""
        return ()


def bridge(
    settings: Settings,
    worker_id: UUID,
    queues: Collection[str],
    rpc: Rpc,
    bus: Bus,
    *,
    worker: Worker,
    settler: Settler,
    hold: Hold,
    figures: Figures,
    background: Background,
    stop: Callable[[str], None],
) -> Silence:
    """Return what tells the broker of the settings; raises ``ConfigError`` if the client is missing."""
    if settings.mqtt_url is None:
        return Silence()
    try:
        from processor.mqtt.bridge import Bridge  # noqa: PLC0415  needs an extra
        from processor.mqtt.control import Control  # noqa: PLC0415  belongs to it
    except ImportError as error:
        raise ConfigError(
            f"PROCESSOR_MQTT_URL: needs an MQTT client: pip install 'supabase-job-processor[mqtt]' ({error})"
        ) from error
    return Bridge(
        settings,
        worker_id,
        rpc,
        bus,
        control=Control(settings.mqtt_prefix, worker_id, queues, worker, stop)
        if settings.mqtt_control
        else None,
        unsettled=lambda: settler.unsettled,
        holds=lambda: hold.holds,
        figures=figures,
        background=background,
    )
