"""Handlers that ask the API themselves, with the key their daemon has at the moment."""

import os

from processor import JobContext, Processor, SyncJobContext

PREFIX = os.environ.get("TEST_PREFIX", "test")
app = Processor()


@app.job(f"{PREFIX}.look", queue=PREFIX)
async def look(job: JobContext) -> int:
    """Count the queue that this job is in, through the application's client."""
    rows = (await job.supabase.table("job_queues").select("name").eq("name", PREFIX).execute()).data
    return len(rows)


@app.job(f"{PREFIX}.look_aside", queue=PREFIX, process=True)
def look_aside(job: SyncJobContext) -> int:
    """Do the same in a process of its own, which lives on for the next job."""
    rows = job.supabase.table("job_queues").select("name").eq("name", PREFIX).execute().data
    return len(rows)
