"""What happens in a daemon, as values, and the bus that brings them to whoever wants to know.

A room publishes once what has happened; who counts it, sends it on or waits for it is none of its business.
"""

from processor.events.lifecycle import (
    AttemptEnded,
    Event,
    FeedModeChanged,
    ItemFinished,
    JobClaimed,
    JobEvent,
    JobFinished,
    JobLost,
    JobProgress,
    JobReleased,
    JobRetried,
    JobSeen,
    JobSnoozed,
    JobsRescued,
    JobStarted,
    QueuePaused,
    WorkerChanged,
)

__all__ = [
    "AttemptEnded",
    "Event",
    "FeedModeChanged",
    "ItemFinished",
    "JobClaimed",
    "JobEvent",
    "JobFinished",
    "JobLost",
    "JobProgress",
    "JobReleased",
    "JobRetried",
    "JobSeen",
    "JobSnoozed",
    "JobStarted",
    "JobsRescued",
    "QueuePaused",
    "WorkerChanged",
]
