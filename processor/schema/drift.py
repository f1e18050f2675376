"""How a database differs from the schema, in words, and what mends it.

Whatever is missing or changed is told. What somebody added is told where it opens or breaks something:
rights, policies, memberships, overloads, tables that Realtime would publish, anything in our own schema. An
operator's indexes, triggers, columns and constraints are the operator's, and so is every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import asyncpg

from processor.schema.catalog import Facts, Key, Objects, expected, found

APPLY = "processor schema apply"
_STRANGERS = ("to public", "to anon", "to authenticated")
_IDENTITY = {"a": "always", "d": "by default"}


@dataclass(frozen=True, slots=True)
class Problem:
    """One difference between a database and the schema."""

    kind: str
    name: str
    says: str
    sql: str = ""
    """What mends it, or prepares it, as SQL; empty if ``apply`` alone mends it."""
    apply: bool = True
    """Whether ``processor schema apply`` is needed, after the SQL if there is any."""
    serious: bool = False
    """Whether it decides who may do what, or lets data be lost."""

    @property
    def mend(self) -> str:
        """What to do about it."""
        return ", then: ".join(filter(None, (self.sql, APPLY if self.apply else "")))


async def problems(connection: asyncpg.Connection) -> list[Problem]:
    """Return how a database of the newest version differs from the schema, the serious first."""
    told = differences(expected(), await found(connection))
    return sorted(told, key=lambda problem: (not problem.serious, problem.says))


def differences(wanted: Objects, there: Objects) -> Iterator[Problem]:
    """Say how what is there differs from what is wanted; of what is missing as a whole, nothing else."""
    wholes = {key.name for key in wanted if not key.part_of}
    lost = {key.name for key in wanted.keys() - there.keys() if not key.part_of}
    for key, facts in wanted.items():
        if key in there:
            yield from _changed(key, facts, there[key])
        # a sequence is told by its column; without Realtime's table its policies have nothing to protect
        elif key.part_of not in lost and key.kind not in {"sequence", "realtime"}:
            yield _missing(key, facts)
    for key in there.keys() - wanted.keys():
        if not key.part_of or key.part_of in wholes:
            yield from _added(key, there[key])


def _missing(key: Key, facts: Facts) -> Problem:
    kind, table, name = key
    match kind:
        case "column":
            sql = f"alter table {table} add column {name} {_column(facts)}"
            return Problem(kind, _name(key), f"{_name(key)} is missing", sql, apply=False)
        case "constraint":
            sql = f"alter table {table} add constraint {name} {facts['definition']}"
            return Problem(kind, _name(key), f"{_name(key)} is missing", sql, apply=False)
        case "right":
            return Problem(kind, name, f"a right is missing: {name}")
        case "publication":
            return Problem(
                kind, table, f"{table} is not in the publication {name}: nobody is told of its changes"
            )
        case "membership":
            return Problem(kind, name, f"a role is not granted: {name}")
        case _:
            return Problem(
                kind, _name(key), f"{_name(key)} is missing", serious=kind in {"table", "policy", "role"}
            )


def _added(key: Key, facts: Facts) -> Iterator[Problem]:
    kind, table, name = key
    match kind:
        case "right":
            says = f"a right too many: {name}"
            yield Problem(
                kind, name, says, serious=name.endswith(_STRANGERS) or name.startswith("grant option")
            )
        case "owner":
            says = f"{table} belongs to {facts['owner']}, who could make our functions do anything"
            yield Problem(kind, table, says, f"alter {name}", apply=False, serious=True)
        case "policy":
            says = f"{_name(key)} is not part of the schema: it may show rows to others"
            yield Problem(kind, name, says, f"drop policy {name} on {table}", apply=False, serious=True)
        case "publication" if "implied" not in facts:
            says = f"{table} is in the publication {name}: Realtime would tell of its changes"
            yield Problem(kind, table, says, f"alter publication {name} drop table {table}", apply=False)
        case "membership":
            role, _, member = name.partition(" to ")
            says = f"{member} has the rights of {role}"
            yield Problem(kind, name, says, f"revoke {role} from {member}", apply=False, serious=True)
        case "function" if name.startswith("public."):
            says = f"{_name(key)} is not part of the schema, but has the name of one that is: calls reach it"
            yield Problem(kind, name, says, f"drop routine {name}", apply=False, serious=True)
        case "function" | "view" | "table" | "type":
            says = f"{_name(key)} is not part of the schema: drop it, or move it to a schema of yours"
            word = "routine" if kind == "function" else kind
            yield Problem(kind, name, says, f"drop {word} {name}", apply=False)
        case _:  # the operator's own
            return


def _changed(key: Key, wanted: Facts, there: Facts) -> Iterator[Problem]:
    changed = {fact for fact in wanted.keys() | there.keys() if wanted.get(fact) != there.get(fact)}
    changed.discard("implied")
    if not changed:
        return
    kind, table, name = key
    says = "; ".join(_difference(key, fact, wanted, there) for fact in sorted(changed))
    match kind:
        case "table":
            yield from _changed_table(name, changed, wanted, there)
        case "column":
            sql = f"alter table {table} " + ", ".join(_alterations(name, changed, wanted))
            yield Problem(kind, _name(key), says, sql, apply=False)
        case "constraint" if changed == {"checked"}:
            sql = f"alter table {table} validate constraint {name}"
            yield Problem(kind, _name(key), f"{_name(key)} was never checked", sql, apply=False)
        case "constraint":
            sql = f"alter table {table} drop constraint {name}, add constraint {name} {wanted['definition']}"
            yield Problem(kind, _name(key), says, sql, apply=False)
        case "index" if changed == {"valid"}:
            yield Problem(kind, name, f"{_name(key)} is invalid: building it was interrupted")
        case "index":
            yield Problem(kind, name, says, f"drop index {name}")
        case "type":
            # with the functions that have to do with it, which apply makes again
            yield Problem(kind, name, says, f"drop type {name} cascade")
        case "view":
            sql = f"drop view {name}" if "columns" in changed else ""
            yield Problem(kind, name, says, sql, serious="options" in changed)
        case "function":
            sql = f"drop function {name}" if changed & {"arguments", "returns"} else ""
            serious = wanted["security definer"] is True or bool(changed & {"security definer", "settings"})
            yield Problem(kind, name, says, sql, serious=serious)
        case "trigger" if changed == {"enabled"}:
            says = f"{_name(key)} is not enabled as it should be"
            yield Problem(kind, _name(key), says, f"alter table {table} enable trigger {name}", apply=False)
        case "realtime":
            says = f"row level security of {name} is off: everyone hears the workers' private topics"
            yield Problem(
                kind, name, says, f"alter table {name} enable row level security", apply=False, serious=True
            )
        case "publication" if changed & {"insert", "update"}:
            sql = f"alter publication {name} set (publish = 'insert, update, delete, truncate')"
            yield Problem(
                kind, name, f"the publication {name} leaves out inserts or updates", sql, apply=False
            )
        case "publication":
            says = f"the publication {name} tells of {table} in part only"
            yield Problem(kind, name, says, f"alter publication {name} drop table {table}")
        case "role":
            words = " ".join(
                f"{'' if wanted[fact] else 'no'}{fact.replace(' ', '')}" for fact in sorted(changed)
            )
            yield Problem(kind, name, says, f"alter role {name} {words}", apply=False, serious=True)
        case "policy" if table == "realtime.messages":
            # apply makes those that are missing, and touches no other: applications send there meanwhile
            yield Problem(kind, _name(key), says, f"drop policy {name} on {table}", serious=True)
        case _:
            yield Problem(kind, _name(key), says, serious=kind == "policy")


def _changed_table(name: str, changed: set[str], wanted: Facts, there: Facts) -> Iterator[Problem]:
    if "row level security" in changed:
        says = f"row level security of {name} is off: everyone with a grant sees every row"
        yield Problem("table", name, says, serious=True)
    if "forced on the owner" in changed:
        says = f"row level security of {name} is forced on its owner: our own functions would see no row"
        yield Problem(
            "table", name, says, f"alter table {name} no force row level security", apply=False, serious=True
        )
    if "persistence" in changed:
        says = f"{name} is unlogged: a crash empties it"
        yield Problem("table", name, says, f"alter table {name} set logged", apply=False, serious=True)
    if "replica identity" in changed:
        says = f"the replica identity of {name} is not the default: Realtime would tell too much, or nothing"
        yield Problem("table", name, says, f"alter table {name} replica identity default", apply=False)


def _difference(key: Key, fact: str, wanted: Facts, there: Facts) -> str:
    if fact == "body":
        return f"the body of {_name(key)} is not the one of this version"
    return f"{fact} of {_name(key)} is {_word(there.get(fact))} instead of {_word(wanted.get(fact))}"


def _word(fact: str | bool | None) -> str:
    if isinstance(fact, bool):
        return "on" if fact else "off"
    return "nothing" if fact is None or fact == "" else fact


def _name(key: Key) -> str:
    """Return how people would name an object."""
    if key.kind == "column":
        return f"column {key.part_of}.{key.name}"
    if key.kind in {"constraint", "policy", "trigger"}:
        return f"{key.kind} {key.name} of {key.part_of}"
    return f"{key.kind} {key.name}"


def _column(facts: Facts) -> str:
    identity = _IDENTITY.get(str(facts.get("identity")))
    return " ".join(
        filter(
            None,
            (
                str(facts["type"]),
                f"generated {identity} as identity" if identity else "",
                f"default {facts['default']}" if "default" in facts else "",
                "not null" if facts["not null"] else "",
            ),
        )
    )


def _alterations(name: str, changed: set[str], wanted: Facts) -> Iterator[str]:
    """Return the clauses of `alter table` that make a column what it should be, in an order that works."""
    column = f"alter column {name}"
    if "default" in changed:
        yield f"{column} drop default"
    if "type" in changed:
        yield f"{column} type {wanted['type']} using {name}::{wanted['type']}"
    if "default" in changed and "default" in wanted:
        yield f"{column} set default {wanted['default']}"
    if "not null" in changed:
        yield f"{column} {'set' if wanted['not null'] else 'drop'} not null"
    if "identity" in changed:
        identity = _IDENTITY.get(str(wanted.get("identity")))
        yield f"{column} add generated {identity} as identity" if identity else f"{column} drop identity"
