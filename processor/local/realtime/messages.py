"""Broadcasts from the database: rows of ``realtime.messages`` on their way to those who joined the topic."""

from __future__ import annotations

import json
from typing import Any

from processor.local.realtime.pgoutput import Change, Relation
from processor.local.realtime.topics import Topics


def is_messages(relation: Relation) -> bool:
    """Tell whether a relation of the stream is the table of messages."""
    return (relation.schema, relation.name) == ("realtime", "messages")


def send(topics: Topics, relation: Relation, change: Change) -> None:
    """Broadcast a row that was inserted; what is no broadcast with a JSON payload is passed over."""
    row: dict[str, Any] = {
        column.name: value for column, value in zip(relation.columns, change.new or (), strict=False)
    }
    topic, event, payload = (row.get(name) for name in ("topic", "event", "payload"))
    if not isinstance(topic, str) or not isinstance(event, str) or not isinstance(payload, str):
        return
    topics.broadcast(
        (topic, row.get("private") == "t"),
        {
            "type": "broadcast",
            "event": event,
            "payload": json.loads(payload),
            "meta": {"id": row.get("id")},
        },
    )
