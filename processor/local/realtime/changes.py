"""Postgres Changes: from the WAL to every subscriber who may see the row and asked for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import asyncpg

from processor.local.context import Commits
from processor.local.realtime import messages, publications
from processor.local.realtime.authorise import visible_rows
from processor.local.realtime.bindings import Binding, SubscriptionError, check_columns
from processor.local.realtime.documents import Writer, error_document
from processor.local.realtime.filters import Filter, FilterError
from processor.local.realtime.pgoutput import Begin, Change, Relation, decode
from processor.local.realtime.sieve import Sieve
from processor.local.realtime.stream import Stream, StreamError
from processor.local.realtime.subscriptions import Delivery, Subscriber, Subscription
from processor.local.realtime.tables import Catalogue, Table, refusal
from processor.local.realtime.tokens import Bearer
from processor.local.realtime.topics import Topics

FIRST_DELAY = 0.1
LONGEST_DELAY = 5.0
ANSWER_SECONDS = 0.005
"""How long a call may go on whose commit was read of, before the database is asked whether all see it."""
EVENTS = {b"I": "INSERT", b"U": "UPDATE", b"D": "DELETE"}

log = logging.getLogger(__name__)


Group: TypeAlias = tuple[Table, str, str]


class Changes:
    """The one reader of the WAL and the subscriptions it serves.

    Args:
        pool: connected as ``authenticator``, for the checks of row level security.
        dsn: the superuser's, for the stream and the catalogs.
        topics: where messages that the database sends are broadcast.
        commits: those that need not be waited for.

    """

    def __init__(self, pool: asyncpg.Pool, dsn: str, topics: Topics, commits: Commits) -> None:
        self._pool = pool
        self._commits = commits
        self._topics = topics
        self._dsn = dsn
        self._live = asyncio.Event()
        self._subscriptions: dict[Subscriber, list[Subscription]] = {}
        self._by_relation: dict[int, list[Subscription]] = {}
        self._sieves: dict[tuple[int, str], Sieve] = {}
        self._relations: dict[int, Relation] = {}
        self._transaction = Begin(0, datetime.now(UTC))
        self._task: asyncio.Task[None] | None = None
        self._admin: asyncpg.Pool | None = None
        self._catalogue: Catalogue | None = None

    async def start(self) -> None:
        """Open the stream; changes that commit after this are seen.

        Raises:
            StreamError: the server does not let us (its ``wal_level`` is not ``logical``, …).

        """
        self._admin = await asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=2,
            reset=_keep,  # nothing here changes a session, so cleaning up would only cost a round trip
            # with an empty path, format_type() qualifies every name
            server_settings={
                "search_path": "",
                "timezone": "UTC",
                "datestyle": "ISO",
                "statement_timeout": "5000",
            },
        )
        self._catalogue = Catalogue(self._admin, publications.CHANGES)
        stream = await self._open()
        self._task = asyncio.create_task(self._run(stream), name="realtime-changes")

    async def stop(self) -> None:
        """Close the stream; harmless if it never started or was stopped before."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        admin, self._admin = self._admin, None
        if admin is not None:
            await admin.close()

    async def subscribe(self, subscriber: Subscriber, bindings: Iterable[Binding], bearer: Bearer) -> None:
        """Serve these bindings from now on, instead of earlier ones of the same subscriber.

        When it returns the stream is live: every change that commits afterwards is delivered.

        Raises:
            SubscriptionError: a table is not in the publication, or a filter does not fit its table.

        """
        role, claims = bearer.claims.role, bearer.claims.json
        bindings = tuple(bindings)
        await self._live.wait()
        for binding in bindings:
            await self._check(binding, role)
        while not self._live.is_set():
            await self._live.wait()
        self._subscriptions[subscriber] = [Subscription(subscriber, each, role, claims) for each in bindings]
        self._forget()

    async def until_live(self) -> None:
        """Wait until the WAL is read: whatever commits after that is told."""
        await self._live.wait()

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Serve this subscriber no longer; harmless if it is unknown."""
        if self._subscriptions.pop(subscriber, None) is not None:
            self._forget()

    async def _check(self, binding: Binding, role: str) -> None:
        catalogue = self._known_catalogue()
        tables = await catalogue.published(binding.schema, binding.table)
        if not tables:
            raise SubscriptionError(
                "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for"
                f" the given connect parameters: {binding}"
            )
        try:
            for table in tables:
                check_columns(binding, await catalogue.access(table, role))
                for condition in binding.filters:
                    await catalogue.bind(condition, table)
        except FilterError as error:
            raise SubscriptionError(
                "Unable to subscribe to changes with given parameters. An exception happened so please check"
                f" your connect parameters: {binding}. Exception: {error}"
            ) from error

    async def _run(self, stream: Stream) -> None:
        delay = FIRST_DELAY
        while True:
            try:
                async with stream:
                    self._live.set()
                    delay = FIRST_DELAY
                    async for received in stream:
                        await self._deliver(received)
            except (StreamError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.error("realtime: the stream of changes ended, subscribers must come again: %s", error)  # noqa: TRY400 - the reason is the whole story
            except Exception:
                # a defect here must not end delivery for good without anybody noticing
                log.exception("realtime: delivering a change failed, subscribers must come again")
            finally:
                self._interrupt()
            stream, delay = await self._reopen(delay)

    async def _reopen(self, delay: float) -> tuple[Stream, float]:
        while True:
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)
            try:
                stream = await self._open()
            except (StreamError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("realtime: no stream of changes yet, next attempt in %.1f s: %s", delay, error)
            else:
                log.warning("realtime: the stream of changes is back")
                return stream, delay

    async def _open(self) -> Stream:
        catalogue, admin = self._known_catalogue(), self._admin
        catalogue.forget()
        self._relations.clear()
        self._forget()
        if admin is not None:
            await publications.ensure(admin)
        return await Stream.open(self._dsn, publications.CHANGES, publications.MESSAGES)

    def _forget(self) -> None:
        """Look anew for who wants what."""
        self._by_relation.clear()
        self._sieves.clear()

    def _interrupt(self) -> None:
        """Between two streams changes go unseen, so nobody may believe to be subscribed."""
        self._live.clear()
        subscribers, self._subscriptions = list(self._subscriptions), {}
        self._forget()
        for subscriber in subscribers:
            subscriber.restart()
        for member in self._topics.private_members():
            member.restart()  # twice is once

    async def _deliver(self, stream: Iterable[bytes]) -> None:
        pending: list[tuple[Relation, Change, Begin]] = []
        for data in stream:
            # rows that nobody asked for are most of the WAL: do not even decode them
            if data[:1] in EVENTS and not await self._may_be_wanted(data):
                continue
            message = decode(data)
            if isinstance(message, Change):
                pending.append((self._relations[message.relation_oid], message, self._transaction))
            elif isinstance(message, Begin):
                self._transaction = message
            elif isinstance(message, Relation):
                await self._publish(pending)  # with the shape that they had
                pending = []
                self._relations[message.oid] = message
                self._forget()
                self._known_catalogue().forget(message.oid)
        await self._publish(pending)

    async def _may_be_wanted(self, data: bytes) -> bool:
        oid, event = int.from_bytes(data[1:5], "big"), EVENTS[data[:1]]
        if messages.is_messages(self._relations[oid]):
            return True
        if not any(each.binding.event in ("*", event) for each in self._wanted(oid)):
            return False
        if event == "DELETE":
            return True
        sieve = self._sieves.get((oid, event))
        if sieve is not None and sieve.expired:
            sieve = None
        while sieve is None:
            relation, wanted = self._relations[oid], self._wanted(oid)
            table = await self._table(relation)
            if table is None:
                return False
            asking = [each for each in wanted if each.binding.event in ("*", event)]
            sieve = await Sieve.make(self._known_catalogue(), relation, table, asking)
            if self._by_relation.get(oid) is wanted:
                self._sieves[oid, event] = sieve
            else:  # somebody came or went meanwhile
                sieve = None
        return sieve.passes(data)

    def _wanted(self, relation_oid: int) -> list[Subscription]:
        found = self._by_relation.get(relation_oid)
        if found is None:
            relation = self._relations[relation_oid]
            found = self._by_relation[relation_oid] = [
                subscription
                for subscriptions in self._subscriptions.values()
                for subscription in subscriptions
                if subscription.binding.matches(relation.schema, relation.name)
                and not messages.is_messages(relation)
            ]
        return found

    async def _publish(self, pending: Sequence[tuple[Relation, Change, Begin]]) -> None:
        if not pending:
            return
        prepared: list[tuple[Relation, Change, datetime, Writer, list[Delivery]]] = []
        asked: dict[Group, list[tuple[Writer, Delivery]]] = {}
        await self._until_visible({transaction.xid for _, _, transaction in pending})
        for relation, change, transaction in pending:
            if messages.is_messages(relation):
                messages.send(self._topics, relation, change)
                continue
            at = transaction.committed_at
            table = await self._table(relation)
            if table is None:
                continue
            writer = Writer(self._known_catalogue(), relation, table, change, at)
            deliveries = await self._deliveries(relation, change, table, writer)
            prepared.append((relation, change, at, writer, deliveries))
            for delivery in deliveries:
                checked = table.row_security and not delivery.access.bypasses_row_security
                if checked and delivery.error is None and change.event != "DELETE":
                    group = (table, delivery.subscription.role, delivery.subscription.claims)
                    asked.setdefault(group, []).append((writer, delivery))
        hidden = await self._hidden(asked)
        for relation, change, at, writer, deliveries in prepared:
            await self._send(
                relation, change, at, writer, [each for each in deliveries if id(each) not in hidden]
            )

    async def _until_visible(self, xids: set[int]) -> None:
        """Wait until everybody can see what these transactions did.

        A commit is in the WAL, and so here, a moment before other transactions see it. A client that reads
        the row it was told of, or our own check of its visibility, must not come in between.
        """
        catalogue, delay = self._known_catalogue(), 0.0
        # the log is as fast as the answer to the call that wrote: asking the database would take longer
        await self._commits.until_known(xids, ANSWER_SECONDS)
        while (unknown := self._commits.unknown(xids)) and await catalogue.unseen(unknown):
            await asyncio.sleep(delay)
            delay = min(delay + 0.0005, 0.05)

    async def _table(self, relation: Relation) -> Table | None:
        catalogue = self._known_catalogue()
        return catalogue.known(relation.oid) or await catalogue.table(
            relation.oid, [column.type_oid for column in relation.columns]
        )

    async def _deliveries(
        self, relation: Relation, change: Change, table: Table, writer: Writer
    ) -> list[Delivery]:
        deliveries = []
        results: dict[Filter, bool] = {}
        for subscription in self._wanted(relation.oid):
            binding = subscription.binding
            if binding.event not in ("*", change.event):
                continue
            access = await self._known_catalogue().access(table, subscription.role)
            delivery = Delivery(subscription, access, refusal(change.event, table, access))
            if delivery.error is None and not await self._passes(binding.filters, table, writer, results):
                continue
            deliveries.append(delivery)
        return deliveries

    async def _passes(
        self, filters: Iterable[Filter], table: Table, writer: Writer, results: dict[Filter, bool]
    ) -> bool:
        row = writer.new or writer.old
        for condition in filters:
            if condition not in results:
                results[condition] = await self._holds(condition, table, row)
            if not results[condition]:
                return False
        return True

    async def _holds(self, condition: Filter, table: Table, row: dict[str, Any]) -> bool:
        text = row.get(condition.column, condition)
        if text is not None and not isinstance(text, str):
            return False  # not in the WAL: not part of the key, or large and unchanged
        catalogue = self._known_catalogue()
        try:
            match = await catalogue.bind(condition, table)
            return match(text) if match is not None else await catalogue.compare(condition, table, text)
        except (FilterError, asyncpg.DataError) as error:
            log.warning("realtime: filter %s no longer fits table %s: %s", condition, table.sql, error)
            return False

    async def _hidden(self, asked: dict[Group, list[tuple[Writer, Delivery]]]) -> set[int]:
        """Ask the database about rows, one transaction per caller and table; return what must not be sent."""
        answers = await asyncio.gather(
            *(self._visible(group, [writer.key for writer, _ in each]) for group, each in asked.items())
        )
        hidden = set()
        for visible, each in zip(answers, asked.values(), strict=True):
            hidden |= {id(delivery) for position, (_, delivery) in enumerate(each) if position not in visible}
        return hidden

    async def _visible(self, group: Group, keys: list[tuple[str | None, ...]]) -> set[int]:
        table, role, claims = group
        try:
            return await visible_rows(self._pool, table, role, claims, keys)
        except asyncpg.PostgresError as error:
            log.error("realtime: role %s cannot be asked what it sees of %s: %s", role, table.sql, error)  # noqa: TRY400 - the reason is the whole story
            message = f"Row level security of {table.sql} failed for role {role}: {error}"
            for subscriber in {
                each.subscriber
                for each in self._wanted(table.oid)
                if (each.role, each.claims) == (role, claims)
            }:
                subscriber.system("postgres_changes", "error", message)
            return set()

    async def _send(
        self, relation: Relation, change: Change, at: datetime, writer: Writer, deliveries: Iterable[Delivery]
    ) -> None:
        documents: dict[Any, str] = {}
        outgoing: dict[tuple[Subscriber, str], list[int]] = {}
        for delivery in deliveries:
            binding, readable = delivery.subscription.binding, delivery.access.readable
            variant = delivery.error or (readable, binding.selected)
            if variant not in documents:
                documents[variant] = (
                    error_document(relation, change, at, delivery.error)
                    if delivery.error is not None
                    else await writer.document(readable, binding.selected)
                )
            outgoing.setdefault((delivery.subscription.subscriber, documents[variant]), []).append(binding.id)
        for (subscriber, document), ids in outgoing.items():
            if subscriber in self._subscriptions:  # it may have left while the database was asked
                subscriber.push_change(ids, document)
                await subscriber.drain()  # a burst is as fast as its slowest reader, within limits

    def _known_catalogue(self) -> Catalogue:
        if self._catalogue is None:
            raise StreamError("Postgres Changes has not been started")
        return self._catalogue


async def _keep(connection: Any) -> None:
    """Leave a connection as it is."""
