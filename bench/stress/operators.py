"""Operators: they grant, take back, pause, move, cancel, retry and prune while everybody else is at work."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from bench.stress.clients import OWNERS, Client
from bench.stress.workers import QUEUES


class Operator(Client):
    """Somebody in the SQL editor."""

    async def step(self) -> None:
        """Do one of the things of the cook-book, then look at the result for a moment."""
        queue = self.random.choice(QUEUES)
        other = self.random.choice([q for q in QUEUES if q != queue])
        chance = self.random.random()
        if chance < 0.30:
            await self.grant()
        elif chance < 0.36:
            await self.refund()
        elif chance < 0.40:
            await self.call("select processor.expire_credits($1)", 100)
        elif chance < 0.50:
            await self.undo_a_grant()
        elif chance < 0.60:
            await self.call("select processor.prune_jobs($1)", 200)
        elif chance < 0.70:
            await self.call("select (processor.pause_queue($1)).paused", queue, name="pause_queue")
            await asyncio.sleep(self.random.random() * 0.2)
            await self.call("select (processor.resume_queue($1)).paused", queue, name="resume_queue")
        elif chance < 0.78:
            await self.call(
                "select cancelled from processor.cancel_queue($1, 20)", queue, name="cancel_queue"
            )
        elif chance < 0.86:
            await self.call(
                "select retried from processor.retry_failed($1, now() - interval '3 seconds', null, 20)",
                queue,
                name="retry_failed",
            )
        elif chance < 0.94:
            await self.call(
                "select moved from processor.move_jobs($1, $2, 20)", queue, other, name="move_jobs"
            )
        else:
            await self.call("select count(*) from processor.queue_health", name="queue_health")
        await asyncio.sleep(self.random.random() * 0.05)

    async def grant(self) -> None:
        """Give an owner credits, once, however often it takes to be told so."""
        owner, amount, key = self.random.choice(OWNERS), self.random.randint(1, 2000), str(uuid4())
        expires_at = datetime.now(UTC) + timedelta(seconds=2) if self.random.random() < 0.4 else None
        await self.surely(
            "processor.grant_credits", owner_id=owner, amount=amount, reason="stress", idempotency_key=key,
            priority=self.random.randint(0, 2), expires_at=expires_at,
        )  # fmt: skip
        self.journal.grants[key] = (owner, amount)

    async def refund(self) -> None:
        """Give a credit back for a job that has ended, once however often it is asked."""
        if self.journal.ended:
            job = self.random.choice(list(self.journal.ended)[-200:])
            order = {"job_id": job, "amount": 1, "reason": "stress", "idempotency_key": f"refund {job}"}
            told = [await self.surely("processor.refund_credits", **order) for _ in range(2)]
            if told[0]["id"] != told[1]["id"]:
                self.journal.violation(f"job {job} was refunded twice under one key")

    async def undo_a_grant(self) -> None:
        """Take back what is available of one of the last grants."""
        if self.journal.grants:
            key = self.random.choice(list(self.journal.grants)[-20:])
            await self.call(
                "select u.taken from public.credit_entries e, processor.undo_grant(e.id, 'stress') u "
                "where e.idempotency_key = $1 and e.kind = 'grant'",
                key,
                name="undo_grant",
            )


class Auditor(Client):
    """Somebody who checks the conservation law, which holds at every commit."""

    async def step(self) -> None:
        """Check; the more there is to check, the longer the pause."""
        faults = await self.call(
            "select to_jsonb(c) from processor.check_credits() c limit 5", name="check_credits"
        )
        if faults:
            self.journal.violation(f"while clients were at work: {faults}")
        await asyncio.sleep(1 + 4 * self.journal.slowest["check_credits"])
