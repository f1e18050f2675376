"""What operators, payments and support do with credits."""

from datetime import datetime, timedelta
from uuid import UUID

from tests.sql.model.ledger import Gift
from tests.sql.model.world import Refused, Row, World


def grant_credits(
    world: World,
    *,
    owner_id: UUID,
    amount: int,
    idempotency_key: str | None,
    priority: int,
    expires_at: datetime | None,
) -> Gift | None:
    """Return the new grant; None if it was given before."""
    if not 1 <= amount <= 10**12:
        raise Refused("JQ006")
    if known := world.ledger.gift_with(owner_id, idempotency_key):
        lot = known.lot
        if (known.kind, known.amount, lot.priority, lot.expires_at) != (
            "grant",
            amount,
            priority,
            expires_at,
        ):
            raise Refused("JQ007")
        return None
    if expires_at and not timedelta(0) < expires_at - world.now < timedelta(days=36_524):
        raise Refused("JQ006")
    grant = Gift("grant", amount, idempotency_key, world.ledger.lot(owner_id, amount, priority, expires_at))
    world.ledger.give(grant)
    return grant


def refund_credits(
    world: World, *, job_id: UUID, amount: int | None, idempotency_key: str | None, reason: str
) -> Gift:
    hold = world.ledger.holds.get(job_id)
    if not hold:
        raise Refused("JQ009" if job_id in world.jobs else "JQ008")
    left = (hold.captured if hold.closed else 0) - hold.refunded
    if known := world.ledger.gift_with(hold.owner, idempotency_key):
        if (known.kind, known.job_id) != ("refund", job_id) or known.amount != (amount or known.left_before):
            raise Refused("JQ007")
        return known
    if not hold.closed or not left:
        raise Refused("JQ009")
    if amount is not None and not 1 <= amount <= left:
        raise Refused("JQ006")
    back = amount or left
    refund = Gift("refund", back, idempotency_key, world.ledger.lot(hold.owner, back), job_id)
    refund.left_before = left
    world.ledger.give(refund)
    hold.refunded += back
    if job := world.jobs.get(job_id):
        job.credits_captured -= back
        job.credits_refunded += back
    return refund


def expire_credits(world: World) -> int:
    """In one batch that is large enough."""
    return world.ledger.expire(set(world.ledger.accounts), world.now)


def undo_grant(world: World, *, grant: Gift) -> Row:
    if grant.kind != "grant":
        raise Refused("JQ006")
    owner = grant.lot.owner
    world.ledger.expire({owner}, world.now)
    available = world.ledger.available(owner)
    taken = min(grant.amount - grant.undone, available)
    world.ledger.undo(grant, taken)
    return {
        "owner_id": str(owner),
        "granted": grant.amount,
        "taken": taken,
        "taken_in_all": grant.undone,
        "missing": grant.amount - grant.undone,
        "available": available - taken,
    }
