"""Every fault by name: how it begins, how long it lasts, and how it ends.

A fault belongs to a room. Two at the same time are of different rooms, so that neither heals the other's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal

from tests.chaos.clock import WHERE_TO_GET_IT
from tests.chaos.world import Member, World
from tests.faults import FaultProxy, Kind

Room = Literal["network", "stack", "process"]
LATE_JOIN = 12.0
"""Longer than a feed waits for the answer to its join."""
TRICKLE = 1000
"""Bytes per second."""


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault as it is to be: whom it hits, which connections of theirs, and for how long."""

    name: str
    members: tuple[int, ...]
    only: Kind | None
    seconds: float
    hours: int = 1
    """For the clock."""

    def __str__(self) -> str:
        room = CATALOGUE[self.name].room
        whom = f" on daemon {', '.join(map(str, self.members))}" if room != "stack" else ""
        what = f" ({self.only})" if self.only and room == "network" else ""
        return f"{self.name}{what}{whom} for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Fault:
    """What can go wrong."""

    name: str
    room: Room
    strike: Callable[[World, Blow], Awaitable[None]]


CATALOGUE: dict[str, Fault] = {}


def fault(room: Room) -> Callable[[Callable[[World, Blow], Awaitable[None]]], None]:
    """Enter a fault under its function's name."""

    def enter(strike: Callable[[World, Blow], Awaitable[None]]) -> None:
        CATALOGUE[strike.__name__] = Fault(strike.__name__, room, strike)

    return enter


def missing(world: World) -> dict[str, str]:
    """Return the faults that cannot be had here, and why."""
    return {} if any(member.clock for member in world.fleet) else {"clock_jump": WHERE_TO_GET_IT}


def hit(world: World, blow: Blow) -> list[Member]:
    """Return the members that a blow concerns."""
    return [world.fleet[number] for number in blow.members]


def network(name: str, begin: Callable[[FaultProxy, Blow], object], *, cut: bool = False) -> None:
    """Enter a fault of the network, which its proxies heal; ``cut``: it meets new connections only."""

    async def strike(world: World, blow: Blow) -> None:
        proxies = [member.proxy for member in hit(world, blow)]
        try:
            for proxy in proxies:
                begin(proxy, blow)
                if cut:
                    proxy.cut(blow.only)
            await asyncio.sleep(blow.seconds)
        finally:
            for proxy in proxies:
                await proxy.heal()

    CATALOGUE[name] = Fault(name, "network", strike)


network("refused", lambda proxy, blow: proxy.refuse(blow.only), cut=True)
network("frozen", lambda proxy, blow: proxy.freeze(blow.only))
network("half_open_up", lambda proxy, blow: proxy.drop("up", blow.only))
network("half_open_down", lambda proxy, blow: proxy.drop("down", blow.only))
network("latency", lambda proxy, blow: proxy.delay(0.1, 5.0, only=blow.only))
network("trickle", lambda proxy, blow: proxy.throttle(TRICKLE, blow.only))
network("black_hole", lambda proxy, blow: proxy.swallow(blow.only))
network("truncated", lambda proxy, _blow: proxy.truncate())
network("mute", lambda proxy, _blow: proxy.mute())


@fault("network")
async def reset(world: World, blow: Blow) -> None:
    """Cut what is open, again and again."""
    end = asyncio.get_running_loop().time() + blow.seconds
    while asyncio.get_running_loop().time() < end:
        for member in hit(world, blow):
            member.proxy.cut(blow.only)
        await asyncio.sleep(0.3)


@fault("network")
async def gateway_error(world: World, blow: Blow) -> None:
    """Answer 502, then 503, then 504, as what stands before an API does when it is not there."""
    try:
        for status in (502, 503, 504):
            for member in hit(world, blow):
                member.proxy.answer(status, blow.only)
            await asyncio.sleep(blow.seconds / 3)
    finally:
        for member in hit(world, blow):
            await member.proxy.heal()


async def _joins(world: World, blow: Blow, seconds: float) -> None:
    proxies = [member.proxy for member in hit(world, blow)]
    try:
        for proxy in proxies:
            proxy.delay_joins(seconds)
            proxy.cut("websocket")
        await asyncio.sleep(blow.seconds)
    finally:
        for proxy in proxies:
            await proxy.heal()


@fault("network")
async def slow_join(world: World, blow: Blow) -> None:
    """Answer joins late, and in time."""
    await _joins(world, blow, 3.0)


@fault("network")
async def late_join(world: World, blow: Blow) -> None:
    """Answer joins when nobody waits any more."""
    await _joins(world, blow, LATE_JOIN)


async def _say(world: World, blow: Blow, *messages: tuple[str, dict[str, str]]) -> None:
    """Say something to all channels, three times in the time."""
    for _ in range(3):
        for member in hit(world, blow):
            for event, payload in messages:
                await member.proxy.say(event, payload)
        await asyncio.sleep(blow.seconds / 3)


def _system(message: str) -> tuple[str, dict[str, str]]:
    return "system", {"extension": "postgres_changes", "status": "error", "message": message}


@fault("network")
async def system_error(world: World, blow: Blow) -> None:
    """Say that the subscription to the database has failed."""
    await _say(world, blow, _system("Subscribing to PostgreSQL failed"))


@fault("network")
async def phx_error(world: World, blow: Blow) -> None:
    """Say that the channel has crashed."""
    await _say(world, blow, ("phx_error", {}))


@fault("network")
async def token_expiry(world: World, blow: Blow) -> None:
    """Say that the token has expired, and close the channel."""
    await _say(world, blow, _system("Token has expired 0 seconds ago"), ("phx_close", {}))


async def _down(world: World, kind: Kind, seconds: float) -> None:
    try:
        for member in world.fleet:
            member.proxy.refuse(kind)
            member.proxy.cut(kind)
        await asyncio.sleep(seconds)
    finally:
        for member in world.fleet:
            await member.proxy.heal()


@fault("network")
async def realtime_down(world: World, blow: Blow) -> None:
    """Take Realtime from everybody, and leave REST."""
    await _down(world, "websocket", blow.seconds)


@fault("network")
async def rest_down(world: World, blow: Blow) -> None:
    """Take REST from everybody, and leave Realtime."""
    await _down(world, "http", blow.seconds)


@fault("stack")
async def postgres_restart(world: World, blow: Blow) -> None:
    """Stop PostgreSQL in order, and start it again."""
    await world.stop_postgres()
    await asyncio.sleep(blow.seconds)
    await world.start_postgres()


@fault("stack")
async def postgres_kill(world: World, blow: Blow) -> None:
    """Kill -9 PostgreSQL, and start it again."""
    await world.kill_postgres()
    await asyncio.sleep(blow.seconds)
    await world.start_postgres()


@fault("stack")
async def gateway_kill(world: World, blow: Blow) -> None:
    """Kill -9 the gateway, and start it again."""
    world.kill_gateway()
    await asyncio.sleep(blow.seconds)
    await world.start_gateway()


@fault("process")
async def daemon_kill(world: World, blow: Blow) -> None:
    """Kill -9 daemons, and start others in their places."""
    for member in hit(world, blow):
        await asyncio.to_thread(world.kill_daemon, member)
    await asyncio.sleep(blow.seconds)
    for member in hit(world, blow):
        world.launch_daemon(member)


@fault("process")
async def daemon_freeze(world: World, blow: Blow) -> None:
    """Let processes stand still for longer than their leases."""
    async with AsyncExitStack() as frozen:
        for member in hit(world, blow):
            await frozen.enter_async_context(world.frozen(member))
        await asyncio.sleep(world.lease + blow.seconds)


@fault("network")
async def disk_full(world: World, blow: Blow) -> None:
    """Leave no room for the spool while the API is away and results must be kept."""
    members = [member for member in hit(world, blow) if world.is_running(member)]
    try:
        for member in members:
            world.fill_disk(member, full=True)
            member.proxy.refuse("http")
            member.proxy.cut("http")
        await asyncio.sleep(blow.seconds)
    finally:
        for member in members:
            await member.proxy.heal()
            if world.is_running(member):
                world.fill_disk(member, full=False)


@fault("process")
async def clock_jump(world: World, blow: Blow) -> None:
    """Move the wall clock of those daemons that have one of their own, and move it back."""
    clocks = [member.clock for member in world.fleet if member.clock]
    for clock in clocks:
        clock.set(blow.hours)
    await asyncio.sleep(blow.seconds)
    for clock in clocks:
        clock.set(0)


def draw(chance: random.Random, name: str, *, members: int, longest: float) -> Blow:
    """Choose whom a fault hits, and for how long."""
    everybody = tuple(range(members))
    some = everybody if chance.random() < 0.3 else (chance.randrange(members),)
    only: Kind | None = chance.choice([None, "http", "websocket"])
    return Blow(name, some, only, chance.uniform(0.3, longest), chance.choice([-1, 1]))
