"""What the rooms of a daemon measure, for whoever counts: names and durations, and they wait for nothing.

What happens to jobs, to the worker and to its feed is told once, on the bus (:mod:`processor.events`).
"""


class Observer:
    """Hears what is measured, in the event loop, and does nothing about it; whoever wants to know inherits.

    All durations are seconds. No method may raise, block, or change anything of a job.
    """

    def claim_answered(self, wakes: frozenset[str], found: int) -> None:
        """Hear that a claim, made for these reasons, found so many jobs."""

    def api_called(self, function: str, result: str, took: float) -> None:
        """Hear of one request: `ok`, `refused` or `unreachable`."""

    def woken(self, source: str) -> None:
        """Hear that the feed gives a reason to look."""

    def connection_begun(self) -> None:
        """Hear that the feed begins a Realtime connection."""

    def connection_ended(self, cause: str) -> None:
        """Hear why one has ended."""

    def probe_answered(self, probe: str, took: float) -> None:
        """Hear that a probe of the feed came back: `ack` or `echo`."""

    def hook_ended(self, kind: str, hook: str, outcome: str) -> None:
        """Hear that a hook of a handler has ended, `done` or `failed`."""

    def event_dropped(self, subscriber: str) -> None:
        """Hear that a subscriber was too slow for an event, which it will not hear of."""


NOBODY = Observer()
"""For those whom nobody watches."""
