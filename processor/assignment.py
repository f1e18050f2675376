"""What of an application one daemon works on: its queues, their handlers and schedules."""

from collections.abc import Sequence
from dataclasses import dataclass

from processor.app import Handler, Processor
from processor.errors import ConfigError
from processor.timetable import Schedule


@dataclass(frozen=True, slots=True)
class Assignment:
    """Some queues of an application, and what belongs to them."""

    queues: tuple[str, ...]
    handlers: tuple[Handler, ...]
    schedules: tuple[Schedule, ...]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of job that are worked on."""
        return frozenset(handler.kind for handler in self.handlers)


def assign(app: Processor, queues: Sequence[str] = ()) -> Assignment:
    """Choose what belongs to these queues; none given: to all that the application has handlers for.

    Raises:
        ConfigError: there would be nothing to do, or nothing on one of the queues.

    """
    handlers = tuple(app.handlers.values())
    if not handlers:
        raise ConfigError('The Processor has no handlers. Declare one with @app.job("name").')
    served = {handler.queue for handler in handlers}
    if idle := [queue for queue in queues if queue not in served]:
        raise ConfigError(
            f"PROCESSOR_QUEUES: no handler works on {', '.join(idle)}. "
            f"The handlers' queues: {', '.join(sorted(served))}."
        )
    chosen = tuple(queues) or tuple(sorted(served))
    mine = tuple(handler for handler in handlers if handler.queue in chosen)
    kinds = {handler.kind for handler in mine}
    planned = tuple(schedule for schedule in app.schedules.values() if schedule.kind in kinds)
    return Assignment(chosen, mine, planned)
