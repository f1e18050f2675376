"""What of an application one daemon works on: its queues, their handlers and schedules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from processor.app import Handler, Processor
from processor.errors import ConfigError
from processor.subscribers import Subscriber
from processor.timetable import Schedule


@dataclass(frozen=True, slots=True)
class Assignment:
    """Some queues of an application, and what belongs to them."""

    queues: tuple[str, ...]
    handlers: tuple[Handler, ...]
    schedules: tuple[Schedule, ...]
    apps: Mapping[str, Processor]
    """Kind → whose handler it has: the application, or what the daemon does itself."""
    aside: tuple[str, ...] = ()
    """Those of the queues whose jobs have slots of their own."""
    subscribers: tuple[Subscriber, ...] = ()
    """All of the application's, whichever its queues."""

    @property
    def main(self) -> tuple[str, ...]:
        """The other queues."""
        return tuple(queue for queue in self.queues if queue not in self.aside)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of job that are worked on."""
        return frozenset(handler.kind for handler in self.handlers)


def assign(app: Processor, queues: Sequence[str] = (), own: Processor | None = None) -> Assignment:
    """Choose what belongs to these queues; none given: to all that the application has handlers for.

    What belongs to ``own``, the handlers that a daemon has itself, is there in any case.

    Raises:
        ConfigError: there would be nothing to do, or nothing on one of the queues.

    """
    theirs = () if own is None else tuple(own.handlers.values())
    if taken := [handler.kind for handler in theirs if handler.kind in app.handlers]:
        raise ConfigError(f"{', '.join(taken)} is the daemon's own kind of job: rename the application's.")
    handlers = (*app.handlers.values(), *theirs)
    if not handlers:
        raise ConfigError('The Processor has no handlers. Declare one with @app.job("name").')
    served = {handler.queue for handler in handlers}
    if idle := [queue for queue in queues if queue not in served]:
        raise ConfigError(
            f"PROCESSOR_QUEUES: no handler works on {', '.join(idle)}. "
            f"The handlers' queues: {', '.join(sorted(served))}."
        )
    aside = tuple(sorted({handler.queue for handler in theirs}))
    chosen = tuple(dict.fromkeys([*(queues or sorted(served)), *aside]))
    mine = tuple(handler for handler in handlers if handler.queue in chosen)
    kinds = {handler.kind for handler in mine}
    planned = tuple(schedule for schedule in app.schedules.values() if schedule.kind in kinds)
    apps = dict.fromkeys(app.handlers, app) | ({} if own is None else dict.fromkeys(own.handlers, own))
    return Assignment(chosen, mine, planned, apps, aside, tuple(app.subscribers))
