"""The money of the model: accounts with lots, holds with tickets, and the sums of the journal."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass
class Account:
    """Columns of credit_accounts."""

    issued: int = 0
    available: int = 0
    held: int = 0
    spent: int = 0
    expired: int = 0


@dataclass(eq=False)
class Lot:
    """Columns of credit_lots."""

    number: int
    """Grows with the id."""
    owner: UUID
    amount: int
    remaining: int
    priority: int
    expires_at: datetime | None

    def burning_order(self) -> tuple[Any, ...]:
        return -self.priority, self.expires_at is None, self.expires_at, self.number

    def is_dead(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now


@dataclass(eq=False)
class Gift:
    """A grant or a refund: an entry of the journal that made a lot."""

    kind: str
    amount: int
    key: str | None
    lot: Lot
    job_id: UUID | None = None
    entry_id: int | None = None
    """Chosen by the database."""
    left_before: int = 0
    """Of a refund: what could be refunded then."""
    undone: int = 0


@dataclass(eq=False)
class Hold:
    """What a job has reserved: tickets, of which some are taken, paid from parts of lots."""

    owner: UUID
    units: int
    unit_price: int
    per_item: bool
    tickets: set[int] = field(default_factory=set)
    closed: bool = False
    parts: list[tuple[Lot, int]] = field(default_factory=list)
    refunded: int = 0

    @property
    def amount(self) -> int:
        return self.units * self.unit_price

    @property
    def captured(self) -> int:
        return len(self.tickets) * self.unit_price


@dataclass
class Ledger:
    """All accounts and what happened to them."""

    accounts: defaultdict[UUID, Account] = field(default_factory=lambda: defaultdict(Account))
    lots: list[Lot] = field(default_factory=list)
    gifts: list[Gift] = field(default_factory=list)
    holds: dict[UUID, Hold] = field(default_factory=dict)
    """By job; they outlive it."""
    journal: Counter[tuple[UUID, str]] = field(default_factory=Counter)
    """Sums by owner and kind of entry."""

    def note(self, owner: UUID, kind: str, amount: int) -> None:
        if amount:
            self.journal[owner, kind] += amount

    def available(self, owner: UUID) -> int:
        return self.accounts[owner].available if owner in self.accounts else 0

    def burning(self, owner: UUID) -> list[Lot]:
        live = [lot for lot in self.lots if lot.owner == owner and lot.remaining]
        return sorted(live, key=Lot.burning_order)

    def gift_with(self, owner: UUID, key: str | None) -> Gift | None:
        return next((g for g in self.gifts if key and (g.lot.owner, g.key) == (owner, key)), None)

    def give(self, gift: Gift) -> None:
        """Write a grant or a refund, and its lot."""
        owner, amount = gift.lot.owner, gift.amount
        account = self.accounts[owner]
        account.available += amount
        if gift.kind == "grant":
            account.issued += amount
        else:
            account.spent -= amount
        self.lots.append(gift.lot)
        self.gifts.append(gift)
        self.note(owner, gift.kind, amount)

    def lot(self, owner: UUID, amount: int, priority: int = 0, expires_at: datetime | None = None) -> Lot:
        return Lot(len(self.lots), owner, amount, amount, priority, expires_at)

    def expire(self, owners: Iterable[UUID], now: datetime) -> int:
        dead = [lot for lot in self.lots if lot.owner in owners and lot.remaining and lot.is_dead(now)]
        for lot in dead:
            self.accounts[lot.owner].available -= lot.remaining
            self.accounts[lot.owner].expired += lot.remaining
            self.note(lot.owner, "expire", lot.remaining)
            lot.remaining = 0
        return len(dead)

    def undo(self, grant: Gift, amount: int) -> None:
        """Take back from the grant's own lot first, then as lots burn."""
        account = self.accounts[grant.lot.owner]
        account.issued -= amount
        account.available -= amount
        grant.undone += amount
        self.note(grant.lot.owner, "clawback", amount)
        lots = sorted(self.burning(grant.lot.owner), key=lambda lot: lot is not grant.lot)
        take(lots, amount)

    def reserve(self, hold: Hold) -> None:
        account = self.accounts[hold.owner]
        account.available -= hold.amount
        account.held += hold.amount
        hold.parts = take(self.burning(hold.owner), hold.amount)
        self.note(hold.owner, "reserve", hold.amount)

    def settle(self, hold: Hold, now: datetime) -> None:
        """Pay what was captured from the parts reserved first; give the rest back to where it came from."""
        if hold.closed:
            return
        hold.closed = True
        account = self.accounts[hold.owner]
        account.held -= hold.amount
        account.spent += hold.captured
        self.note(hold.owner, "capture", hold.captured)
        spent = hold.captured
        for lot, amount in hold.parts:
            rest = amount - min(amount, spent)
            spent -= amount - rest
            self.note(hold.owner, "release", rest)
            if lot.is_dead(now):
                account.expired += rest
                self.note(hold.owner, "expire", rest)
            else:
                account.available += rest
                lot.remaining += rest


def take(lots: list[Lot], amount: int) -> list[tuple[Lot, int]]:
    """Empty lots one after the other until there is enough."""
    parts = []
    for lot in lots:
        part = min(lot.remaining, amount)
        if part:
            lot.remaining -= part
            amount -= part
            parts.append((lot, part))
    assert amount == 0, "what is available is in lots"
    return parts
