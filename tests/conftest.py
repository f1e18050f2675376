"""The local stack as a real process, and small helpers to use it with."""

import asyncio
import inspect
import json
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from postgrest import AsyncPostgrestClient

READY_SECONDS = 60.0
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class RunningStack:
    """Address and keys of a local stack that runs as a process of its own."""

    url: str
    anon_key: str
    service_role_key: str
    jwt_secret: str
    db_url: str
    panel_url: str
    pid: int
    demo_user: dict[str, Any] | None = None
    operator_user: dict[str, Any] | None = None

    def headers(self, token: str | None = None) -> dict[str, str]:
        """Return what a client sends: one signed in with ``token``, or an anonymous one."""
        return {"apikey": self.anon_key, "Authorization": f"Bearer {token or self.anon_key}"}

    @property
    def service_headers(self) -> dict[str, str]:
        """What a trusted server sends."""
        return {"apikey": self.service_role_key, "Authorization": f"Bearer {self.service_role_key}"}


class DevProcess:
    """``processor dev --json`` as a child process."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._stderr_path = directory / "dev.stderr"
        with self._stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "processor", "dev", "--json", "--port", "0", *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C reaches pytest, which then stops this in order
            )

    def ready(self) -> RunningStack:
        """Wait for the line that says it is ready."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS)
        line = self.process.stdout.readline() if readable else b""
        assert line, f"processor dev was not ready: {self.stderr()}"
        return RunningStack(**json.loads(line))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop; return its exit code. Kills it, and fails, if it does not stop."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"processor dev did not stop: {self.stderr()}") from None
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()

    def stderr(self) -> str:
        return self._stderr_path.read_text()


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what daemons leave behind out of the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STATE_DIRECTORY", raising=False)
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def dev_process(tmp_path: Path) -> Iterator[Callable[..., DevProcess]]:
    """Start ``processor dev --json`` with further arguments; whatever still runs at the end is stopped."""
    started: list[DevProcess] = []

    def start(*arguments: str) -> DevProcess:
        directory = tmp_path / f"dev-{len(started)}"
        directory.mkdir()
        started.append(DevProcess(directory, *arguments))
        return started[-1]

    yield start
    for dev in started:
        dev.stop()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """One stack for the whole run, with the jobs schema; tests make users of their own in it."""
    directory = tmp_path_factory.mktemp("stack")
    dev = DevProcess(directory, "--data-dir", str(directory / "data"))
    try:
        yield dev.ready()
    finally:
        code = dev.stop()
    assert code == 0, f"processor dev ended with {code}: {dev.stderr()}"


def rest_client(stack: RunningStack, headers: dict[str, str]) -> AsyncPostgrestClient:
    http = httpx.AsyncClient(
        base_url=f"{stack.url}/rest/v1", headers=headers, timeout=10, http2=False, trust_env=False
    )
    return AsyncPostgrestClient(f"{stack.url}/rest/v1", headers=headers, http_client=http)


@pytest.fixture
async def service(stack: RunningStack) -> AsyncIterator[AsyncPostgrestClient]:
    """Give the REST API as service_role, through the official client."""
    async with rest_client(stack, stack.service_headers) as client:
        yield client


@pytest.fixture
async def admin(stack: RunningStack) -> AsyncIterator[asyncpg.Connection]:
    """Give a superuser's connection to the stack's database."""
    connection = await asyncpg.connect(stack.db_url)
    try:
        yield connection
    finally:
        await connection.close()


@dataclass
class NewUser:
    """A user who has just signed up, with the REST API as this user."""

    id: str
    email: str
    password: str
    access_token: str
    refresh_token: str
    rest: AsyncPostgrestClient = field(repr=False)


@pytest.fixture
async def new_user(
    stack: RunningStack, service: AsyncPostgrestClient
) -> AsyncIterator[Callable[..., Awaitable[NewUser]]]:
    """Sign up users, on request with credits."""
    clients: list[AsyncPostgrestClient] = []

    async def sign_up(*, credits: int = 0) -> NewUser:  # noqa: A002 - the word of the domain
        email, password = f"{uuid4().hex}@example.com", uuid4().hex
        async with httpx.AsyncClient(base_url=stack.url, headers=stack.headers(), trust_env=False) as http:
            answer = await http.post("/auth/v1/signup", json={"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        session = answer.json()
        user_id = session["user"]["id"]
        if credits:
            grant = {"owner_id": user_id, "amount": credits, "reason": "test"}
            await service.rpc("grant_credits", grant).execute()
        clients.append(rest_client(stack, stack.headers(session["access_token"])))
        return NewUser(
            id=user_id,
            email=email,
            password=password,
            access_token=session["access_token"],
            refresh_token=session["refresh_token"],
            rest=clients[-1],
        )

    yield sign_up
    for client in clients:
        await client.aclose()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Awaitable[Any]]:
    """Wait until a condition holds and return what it returned."""

    async def until_true(condition: Callable[[], Any], *, within: float = 5.0, every: float = 0.02) -> Any:
        """Call ``condition`` (sync or async) until it is truthy and return that; fail after ``within`` s."""
        deadline = time.monotonic() + within
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            assert time.monotonic() < deadline, f"not within {within} s; the last value was {value!r}"
            await asyncio.sleep(every)

    return until_true
