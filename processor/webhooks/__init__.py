"""Webhooks: deliveries are jobs of queue ``webhooks``; here they are signed, and sent where they may go."""

from collections.abc import Callable
from uuid import UUID

from processor.app import Processor
from processor.config import Settings
from processor.errors import ConfigError
from processor.rpc import Rpc


def delivering(settings: Settings, worker_id: UUID, rpc: Callable[[], Rpc]) -> Processor | None:
    """Return the handler of deliveries as an application of its own; None: this daemon delivers nothing.

    Raises:
        ConfigError: the library that signs is missing.

    """
    if not settings.webhooks:
        return None
    try:
        from processor.webhooks.deliveries import Deliveries  # noqa: PLC0415  needs an extra
        from processor.webhooks.guard import Guard  # noqa: PLC0415  likewise
        from processor.webhooks.sender import Sender  # noqa: PLC0415  likewise
    except ImportError as error:
        raise ConfigError(
            f"PROCESSOR_WEBHOOKS: needs more: pip install 'supabase-job-processor[webhooks]' ({error})"
        ) from error
    return Deliveries(rpc, worker_id, Sender(Guard(settings.webhook_allow))).application()
