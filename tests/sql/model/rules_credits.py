"""The acts of operators, payments and support on credits."""

from datetime import timedelta
from typing import ClassVar

from tests.sql.model import credits as credits_
from tests.sql.model.choices import OWNERS, Basics
from tests.sql.model.machine import agree


class Credits(Basics):
    """Grants, refunds, expiry, clawback."""

    acts: ClassVar = {"grant": 2, "refund": 2, "undo_a_grant": 1, "expire": 1}

    def grant(self) -> None:
        lasts = self.pick(None, None, 60, 300, 3600, 90_000, 0 if self.chance(4) else 10)
        self.give(
            self.pick(*OWNERS),
            0 if self.chance(20) else self.pick(5, 20, 100),
            self.pick(None, None, "g1", "g2"),
            priority=self.pick(0, 0, 1, -1),
            expires_at=None if lasts is None else self.world.now + timedelta(seconds=lasts),
        )

    def refund(self) -> None:
        spent = [job_id for job_id, hold in self.world.ledger.holds.items() if hold.tickets]
        job_id = self.some_job("completed") if not spent or self.chance(4) else self.pick(*spent)
        arguments = {
            "job_id": job_id,
            "amount": self.pick(None, None, 3, 10, 1000 if self.chance(4) else 1),
            "idempotency_key": self.pick(None, None, "g1", "r1"),
            "reason": "bad",
        }
        if both := self.both(credits_.refund_credits, "processor.refund_credits", **arguments):
            refund, answer = both
            agree("refund_credits", (answer["kind"], answer["amount"]), ("refund", refund.amount))
            agree("the entry of a refund", answer["id"], refund.entry_id or answer["id"])
            refund.entry_id = answer["id"]

    def expire(self) -> None:
        if both := self.both(credits_.expire_credits, "expire_credits"):
            agree("expire_credits", both[1], both[0])

    def undo_a_grant(self) -> None:
        gifts = self.world.ledger.gifts
        if not gifts:
            return
        gift = self.pick(*gifts)
        both = self.compared(
            lambda: credits_.undo_grant(self.world, grant=gift),
            "processor.undo_grant",
            entry_id=gift.entry_id,
            reason="wrong",
        )
        if both:
            agree("undo_grant", both[1], both[0])
