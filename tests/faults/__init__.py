"""A TCP proxy that misbehaves on command, between a client and any HTTP server.

Faults may concern every connection or one kind of them, told apart by the first request on it::

    async with FaultProxy(stack.url) as proxy:
        feed = Feed(proxy.url, ...)
        proxy.freeze("websocket")     # REST goes on
        ...
        await proxy.heal()

Bytes are forwarded, held, delayed, slowed down or thrown away; connections are refused, reset or swallowed;
requests are answered by the proxy itself, or their answers cut short. Of websockets it knows the frames, so
that it may keep some of them, or add what a Realtime server might say.
"""

from tests.faults.proxy import FaultProxy
from tests.faults.rules import KINDS, Direction, Kind

__all__ = ["KINDS", "Direction", "FaultProxy", "Kind"]
