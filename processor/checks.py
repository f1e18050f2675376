"""What a daemon is asked about itself: whether it moves, is alive, is able to work; and each time why not."""

from collections.abc import Callable, Mapping
from typing import Any

from processor.credential import Credential
from processor.lease import Lease
from processor.resources import Resources
from processor.service import Background
from processor.worker import Worker


class Checks:
    """Looks at the parts of a daemon; waits for nothing. Answers are name of a check → why it fails, or None.

    ``registered`` and ``stopping`` tell of the daemon itself.
    """

    def __init__(
        self,
        *,
        background: Background,
        resources: Resources,
        credential: Credential,
        lease: Lease,
        worker: Worker,
        registered: Callable[[], bool],
        stopping: Callable[[], bool],
    ) -> None:
        self._background = background
        self._resources = resources
        self._credential = credential
        self._lease = lease
        self._worker = worker
        self._registered = registered
        self._stopping = stopping

    def moving(self) -> Mapping[str, str | None]:
        """Tell which of the loops that matter stand still, although their tasks are there."""
        return {"heartbeats": self._lease.stuck, "claims": self._worker.stuck}

    def healthy(self) -> Mapping[str, str | None]:
        """Tell what only a new process mends."""
        dead = ", ".join(self._background.dead)
        return {"background": f"ended by themselves: {dead}" if dead else None, **self.moving()}

    def ready(self) -> Mapping[str, Any]:
        """Tell what keeps it from taking work."""
        return {
            **self.healthy(),
            "resources": self._resources.starting and f"{self._resources.starting} is being started",
            "registered": None if self._registered() else "the API has not accepted this worker yet",
            "credential": self._credential.problem,
            "lease": "no heartbeat gets through" if self._lease.fenced else None,
            "first_sweep": None if self._worker.looked else "no claim has been answered yet",
            "slots": self._worker.blocked,
            "accepting": "it is stopping" if self._stopping() else None,
        }
