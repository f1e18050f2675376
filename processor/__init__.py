"""Turn rows of ``public.jobs`` in a Supabase project into finished work."""

from importlib.metadata import version

from processor.app import Processor
from processor.calls.context import SyncJobContext, SyncJobItem
from processor.calls.line import JobStopped
from processor.context import JobContext, JobItem
from processor.errors import ErrorCode, JobError, ProcessorError, UsageError
from processor.hooks import Ended
from processor.job import Cancel, Child, Discard, JobStatus, NewChild, Retry, Snooze, Wait

__version__ = version("supabase-job-processor")

__all__ = [
    "Cancel",
    "Child",
    "Discard",
    "Ended",
    "ErrorCode",
    "JobContext",
    "JobError",
    "JobItem",
    "JobStatus",
    "JobStopped",
    "NewChild",
    "Processor",
    "ProcessorError",
    "Retry",
    "Snooze",
    "SyncJobContext",
    "SyncJobItem",
    "UsageError",
    "Wait",
    "__version__",
]
