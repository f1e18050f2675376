"""Turn rows of ``public.jobs`` in a Supabase project into finished work."""

from importlib.metadata import version

from processor.app import Processor
from processor.context import JobContext, JobItem
from processor.errors import ErrorCode, JobError, ProcessorError, UsageError
from processor.job import Cancel, Discard, JobStatus, Retry, Snooze

__version__ = version("supabase-job-processor")

__all__ = [
    "Cancel",
    "Discard",
    "ErrorCode",
    "JobContext",
    "JobError",
    "JobItem",
    "JobStatus",
    "Processor",
    "ProcessorError",
    "Retry",
    "Snooze",
    "UsageError",
    "__version__",
]
