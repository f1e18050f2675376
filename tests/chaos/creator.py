"""The creator: makes jobs all the time, cancels some, and remembers what the API has acknowledged."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import httpx

from tests.conftest import RunningStack

OWNERS = [str(UUID(int=number)) for number in (1, 2, 3)]
GRANT = 10_000_000
# how often each kind is made
WEIGHTS = {
    "plain": 6,
    "priced": 4,
    "items": 4,
    "failing_items": 2,
    "retried": 2,
    "snoozed": 2,
    "hopeless": 1,
    "long": 3,
    "thread": 2,
    "process": 2,
    "checkpoints": 2,
    "parent": 1,
}
IN_STEPS = {"long", "thread", "process"}
"""These take a while, and some of them are cancelled."""


@dataclass(slots=True)
class Order:
    """A job that was acknowledged."""

    id: str
    kind: str
    payload: dict[str, Any]
    items: list[str]
    owner_id: str | None
    cancelled: bool = False
    """Somebody has asked for its end."""


class Creator:
    """Talks to the gateway itself, past every proxy, and repeats each call until it is answered."""

    def __init__(self, stack: RunningStack, seed: str, *, per_second: float = 10.0) -> None:
        self.orders: dict[str, Order] = {}
        self.doubled: list[str] = []
        """Keys that were answered with two jobs."""
        self._run = uuid4().hex[:8]
        self._chance = random.Random(seed)
        self._per_second = per_second
        self._http = httpx.AsyncClient(
            base_url=stack.url, headers=stack.service_headers, timeout=10, trust_env=False
        )
        self._number = 0
        self._cancels: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Give every owner credits."""
        for owner in OWNERS:
            grant = {"owner_id": owner, "amount": GRANT, "idempotency_key": owner}
            await self._call("grant_credits", grant)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._cancels:
            task.cancel()
        await self._http.aclose()

    async def run(self, stop: asyncio.Event) -> None:
        """Create and cancel until told to stop; return when all is acknowledged."""
        while not stop.is_set():
            await self.create([self._draft() for _ in range(self._chance.choice([1, 1, 2, 5]))])
            await asyncio.sleep(self._chance.uniform(0, 4 / self._per_second))
        await self.acknowledged()

    async def some_of_each(self, times: int = 2) -> None:
        """Create every kind, so that a daemon has done everything once."""
        await self.create([self._draft(kind) for kind in WEIGHTS for _ in range(times)])
        await self.acknowledged()

    async def one(self, kind: str, **payload: Any) -> Order:
        """Create one job."""
        draft = self._draft(kind)
        draft["payload"] = payload
        await self.create([draft], cancels=False)
        return list(self.orders.values())[-1]

    async def cancel(self, order: Order) -> None:
        """Cancel a job."""
        order.cancelled = True  # from the first try on: its answer may be lost
        await self._call("cancel_job", {"job_id": order.id})

    async def acknowledged(self) -> None:
        """Wait until every wish to cancel has been heard."""
        if self._cancels:
            await asyncio.wait(self._cancels)
        for task in self._cancels:
            task.result()
        self._cancels.clear()

    async def create(self, drafts: list[dict[str, Any]], *, cancels: bool = True) -> None:
        """Create jobs, some of them twice: the key makes it one."""
        answers = await self._call("create_jobs", {"jobs": drafts})
        if self._chance.random() < 0.1:
            again = await self._call("create_jobs", {"jobs": drafts})
            self.doubled += [
                draft["idempotency_key"]
                for draft, first, second in zip(drafts, answers, again, strict=True)
                if first["id"] != second["id"]
            ]
        for draft, answer in zip(drafts, answers, strict=True):
            order = Order(
                answer["id"],
                draft["kind"].removeprefix("chaos."),
                draft["payload"],
                draft.get("items", []),
                draft["owner_id"],
            )
            self.orders[order.id] = order
            if cancels and order.kind in IN_STEPS and self._chance.random() < 0.4:
                task = asyncio.create_task(
                    self._cancel_later(order, self._chance.uniform(0.1, 2.0)), name=f"cancel {order.id}"
                )
                self._cancels.add(task)

    def _draft(self, kind: str | None = None) -> dict[str, Any]:
        self._number += 1
        chance = self._chance
        if kind is None:
            kind = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        payload: dict[str, Any] = {"n": self._number, "seconds": round(chance.uniform(0.01, 0.3), 3)}
        draft: dict[str, Any] = {
            "kind": f"chaos.{kind}",
            "payload": payload,
            "owner_id": chance.choice(OWNERS),
            "idempotency_key": f"{self._run}-{self._number}",
        }
        if kind in {"items", "failing_items"}:
            draft["items"] = [f"item{number}" for number in range(chance.randint(2, 6))]
        if kind in IN_STEPS:
            payload |= {"steps": chance.randint(4, 12), "seconds": round(chance.uniform(0.05, 0.2), 3)}
        if kind == "checkpoints":
            payload |= {"steps": chance.randint(2, 5)}
        return draft

    async def _cancel_later(self, order: Order, after: float) -> None:
        await asyncio.sleep(after)
        await self.cancel(order)

    async def _call(self, function: str, arguments: dict[str, Any]) -> Any:
        """Call until it is answered; what is refused for good is a mistake of this file."""
        while True:
            try:
                answer = await self._http.post(f"/rest/v1/rpc/{function}", json=arguments)
            except httpx.TransportError:
                await asyncio.sleep(0.2)
                continue
            if answer.is_success:
                return answer.json()
            if answer.status_code >= 500:
                await asyncio.sleep(0.2)
                continue
            raise AssertionError(f"{function} was refused: {answer.text}")
