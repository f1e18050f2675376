"""A plain function in a thread of its own, awaited to its end: a thread cannot be stopped from outside."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from processor.calls.context import Brief, SyncJobContext
from processor.calls.line import Answer, Gate, JobStopped, Line, Message, attempt
from processor.calls.switchboard import Switchboard
from processor.context import JobContext

if TYPE_CHECKING:
    from supabase import Client


async def call_in_thread(
    function: Callable[..., Any],
    context: JobContext[Any],
    brief: Brief,
    gate: Gate,
    *,
    logger: Any,
    client: "Callable[[], Client]",
    resources: dict[str, Any] | None = None,
) -> Any:
    """Return or raise what ``function`` does.

    Being cancelled sets ``cancelled`` and makes the function's calls raise ``JobStopped``; then it is waited
    for all the same, however long it takes: it is still there. What it returns after that counts.
    """
    loop = asyncio.get_running_loop()

    def send(message: Message) -> None:
        try:
            loop.call_soon_threadsafe(switchboard.receive, message)
        except RuntimeError as error:  # the loop is closed, and the process about to end
            raise JobStopped("the daemon has ended") from error

    line = Line(send, gate)
    switchboard = Switchboard(context, line.deliver)
    job: SyncJobContext[Any] = SyncJobContext(brief, line, logger=logger, client=client)
    ended: asyncio.Future[Answer] = loop.create_future()

    def work() -> None:
        answer = attempt(function, job, **(resources or {}))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(ended.set_result, answer)

    threading.Thread(
        target=contextvars.copy_context().run,
        args=(work,),
        name=f"handler:{brief.job.kind}:{brief.job.id}",
        daemon=True,
    ).start()
    while not ended.done():
        try:
            await asyncio.wait({ended})
        except asyncio.CancelledError:
            job.cancelled.set()
            switchboard.stop()
    await switchboard.close()
    answer = ended.result()
    if isinstance(answer.error, JobStopped):
        raise asyncio.CancelledError from answer.error
    return answer.get()
