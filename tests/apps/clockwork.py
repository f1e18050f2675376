"""Handlers that run by the clock; names carry TEST_PREFIX."""

import os
from typing import Any

from processor import JobContext, Processor

PREFIX = os.environ.get("TEST_PREFIX", "test")
app = Processor()


@app.cron("0 3 * * *", timezone="Europe/Berlin", kind=f"{PREFIX}.nightly", queue=PREFIX)
async def nightly(job: JobContext) -> dict[str, Any]:
    """Say for which time it ran."""
    return {"tick": job.tick.isoformat() if job.tick else None, **job.payload}


for number in range(9):
    app.schedule(f"{PREFIX}.{number}", "30 4 * * *", kind=f"{PREFIX}.nightly", payload={"number": number})
