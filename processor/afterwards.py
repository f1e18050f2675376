"""Runs the hooks of handlers, when the database has taken how an attempt ended.

Each run is a task of its own, in no job's slot: a hook that hangs or raises costs its job nothing, and no
other job. It happens at most once, since nothing is kept of it: what must not be missed is a webhook's.
"""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Mapping
from typing import Any

import structlog

from processor.clients import ApplicationClient
from processor.events.lifecycle import AttemptEnded, JobFinished, JobRetried
from processor.hooks import Ended, Hook, Hooks
from processor.incidents import UNREPORTED, Incidents
from processor.job import Job, JobStatus, Outcome
from processor.log import of_job
from processor.observer import NOBODY, Observer

HOOK_SECONDS = 30.0
"""How long after the result a hook may run; waiting for its turn counts."""
AT_ONCE = 100
"""Hooks running at the same time; a thread that goes on after its time still is one of them."""

_GIVE_UP_SECONDS = 1.0
"""How long a hook that is cut off on the way out may clean up."""


class Afterwards:
    """Runs hooks.

    ``resources`` are what they may take; ``observer`` and ``incidents`` hear how they ended. ``seconds`` is
    how long each may take, ``at_once`` how many may run at the same time.
    """

    def __init__(
        self,
        client: ApplicationClient,
        resources: Mapping[str, Any],
        observer: Observer = NOBODY,
        incidents: Incidents = UNREPORTED,
        *,
        seconds: float = HOOK_SECONDS,
        at_once: int = AT_ONCE,
    ) -> None:
        self._client = client
        self._resources = resources
        self._observer = observer
        self._incidents = incidents
        self._seconds = seconds
        self._turns = asyncio.Semaphore(at_once)
        self._going: dict[asyncio.Task[None], _Going] = {}

    def begin(self, hooks: Hooks, job: Job, event: AttemptEnded, outcome: Outcome, log: Any) -> None:
        """Run the hook for what has become of an attempt, if there is one; ``log`` knows the job."""
        match event:
            case JobFinished():
                status, run_at = JobStatus(event.status), None
            case JobRetried():
                status, run_at = JobStatus.PENDING, event.run_at
            case _:
                return
        hook = hooks.of(status)
        if hook is None:
            return
        failure = outcome.failure
        ended = Ended(
            job,
            status,
            result=outcome.result if status is JobStatus.COMPLETED else None,
            error_code=event.error_code or (None if failure is None else failure.code),
            error_message=event.error_message or (None if failure is None else failure.message),
            run_at=run_at,
            client=self._client.blocking if hook.blocks else self._client.get,
        )
        task = asyncio.create_task(
            self._run(hook, ended, log),
            name=f"{hook.name}:{job.kind}:{job.id}",
        )
        timer = asyncio.get_running_loop().call_later(self._seconds, self._cut_off, task)
        self._going[task] = _Going(hook, job, log, timer)
        task.add_done_callback(self._ended)

    async def close(self, seconds: float, hurry: asyncio.Event) -> None:
        """Let what runs end within ``seconds``, or until somebody hurries; then cut it off."""
        if self._going and seconds > 0 and not hurry.is_set():
            all_ended = asyncio.create_task(asyncio.wait(set(self._going)), name="hooks")
            hurried = asyncio.create_task(hurry.wait(), name="hurry")
            try:
                await asyncio.wait({all_ended, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            finally:
                all_ended.cancel()
                hurried.cancel()
        if left := set(self._going):
            for task in left:
                self._cut_off(task, "the daemon ended before it did")
            await asyncio.wait(left, timeout=_GIVE_UP_SECONDS)

    async def _run(self, hook: Hook, ended: Ended, log: Any) -> None:
        """Wait for a turn, and call the hook."""
        await self._turns.acquire()
        release = True
        try:
            of_job(structlog.get_context(log))
            given = {name: self._resources[name] for name in hook.resources}
            if hook.blocks:
                thread = _in_thread(hook, ended, given)
                thread.add_done_callback(lambda _thread: self._turns.release())
                release = False  # it runs on when nobody waits for it any more
                await asyncio.wait({thread})
                thread.result()
            else:
                await hook.function(ended, **given)
        except (SystemExit, KeyboardInterrupt) as error:  # the hook's failure, not the daemon's end
            raise RuntimeError(f"the hook raised {type(error).__name__}") from error
        finally:
            if release:
                self._turns.release()

    def _cut_off(self, task: "asyncio.Task[None]", why: str = "") -> None:
        """Stop one whose time is over; it is not waited for."""
        if (going := self._going.get(task)) is not None and not going.told:
            self._failed(going, TimeoutError(why or f"it has not ended within {self._seconds:g} s"))
        task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        going = self._going.pop(task)
        going.timer.cancel()
        if task.cancelled():
            if not going.told:
                self._failed(going, asyncio.CancelledError("the hook ended with CancelledError"))
        elif (error := task.exception()) is not None:
            if not going.told:
                self._failed(going, error)
        elif not going.told:
            self._observer.hook_ended(going.job.kind, going.hook.name, "done")

    def _failed(self, going: "_Going", error: BaseException) -> None:
        """Say so, once; the job is as it is."""
        going.told = True
        going.log.error("hook.failed", hook=going.hook.name, exc_info=error)
        self._observer.hook_ended(going.job.kind, going.hook.name, "failed")
        self._incidents.hook_failed(going.job, going.hook.name, error)


class _Going:
    """One hook that runs."""

    __slots__ = ("hook", "job", "log", "timer", "told")

    def __init__(self, hook: Hook, job: Job, log: Any, timer: asyncio.TimerHandle) -> None:
        self.hook = hook
        self.job = job
        self.log = log
        self.timer = timer
        self.told = False
        """Its failure has been said: how it ends after that matters to nobody."""


def _in_thread(hook: Hook, ended: Ended, given: dict[str, Any]) -> "asyncio.Future[None]":
    """Call a plain function in a thread of its own, which nobody can stop and no exit waits for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def work() -> None:
        error = _called(hook, ended, given)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error)

    def settle(error: BaseException | None) -> None:
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
            done.exception()  # seen, even if nobody waits any more

    threading.Thread(
        target=contextvars.copy_context().run,
        args=(work,),
        name=f"{hook.name}:{ended.job.kind}:{ended.job.id}",
        daemon=True,
    ).start()
    return done


def _called(hook: Hook, ended: Ended, given: dict[str, Any]) -> BaseException | None:
    """Call it, and return what it raised."""
    try:
        answer = hook.function(ended, **given)
    except (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError) as error:
        wrapped = RuntimeError(f"the hook raised {type(error).__name__}")
        wrapped.__cause__ = error
        return wrapped
    except BaseException as error:  # noqa: BLE001  it is told where the hook is waited for
        return error
    if inspect.iscoroutine(answer):
        answer.close()
        return TypeError("the hook returned a coroutine, which nobody awaits: write `async def`")
    return None
