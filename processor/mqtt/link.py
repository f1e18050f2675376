"""One connection to the broker, from its beginning to its end; the next one is another object.

Of aiomqtt's client it uses all but ``publish()``: a task and a timer for each message would cost more than
the message. What it sends is acknowledged one by one all the same, and what is not when the connection ends
is given back.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import aiomqtt
from aiomqtt import MqttCodeError, MqttError, ProtocolVersion
from paho.mqtt.client import Client as PahoClient
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from processor.mqtt.backlog import Sent
from processor.mqtt.broker import Broker
from processor.mqtt.messages import Message

WINDOW = 20
"""Messages on their way: what brokers take from a client that has not been told otherwise."""
_KEEPALIVE = 15
"""Seconds of silence after which either side asks whether the other is there."""
_PATIENCE = 10.0
"""Seconds for the broker to answer a request to connect or to subscribe."""
_REFUSED = 128
"""Reason codes from here on are refusals."""


class Link(aiomqtt.Client):
    """One connection.

    ``on_told`` hears what the broker has taken, or why it has not; ``on_stir`` that something has changed.

    Raises:
        ConfigError: a certificate cannot be read.

    """

    def __init__(
        self,
        broker: Broker,
        protocol: ProtocolVersion,
        identifier: str,
        will: Message,
        *,
        on_told: Callable[[Sent, Message, str | None], None],
        on_stir: Callable[[], None],
    ) -> None:
        five = protocol is ProtocolVersion.V5
        super().__init__(
            broker.host,
            broker.port,
            username=broker.username,
            password=broker.password,
            identifier=identifier,
            protocol=protocol,
            clean_session=None if five else True,
            keepalive=_KEEPALIVE,
            timeout=_PATIENCE,
            max_inflight_messages=WINDOW,
            tls_context=broker.context(),
            will=aiomqtt.Will(
                will.topic,
                will.payload,
                qos=1,
                retain=True,
                properties=_properties(will, PacketTypes.WILLMESSAGE) if five else None,
            ),
        )
        self.five = five
        self.sent: dict[int, tuple[Sent, Message]] = {}
        """What is on its way, by packet identifier, in the order of sending."""
        self._on_told = on_told
        self._on_stir = on_stir

    @property
    def over(self) -> bool:
        """Whether the connection has ended."""
        return self._disconnected.done()

    @property
    def why(self) -> str:
        """Why it has ended."""
        if not self._disconnected.done() or self._disconnected.cancelled():
            return "it was closed"
        error = self._disconnected.exception()
        return "it was closed" if error is None else str(error) or type(error).__name__

    def watch(self) -> None:
        """Have the end of the connection stir, too."""
        self._disconnected.add_done_callback(lambda _lost: self._on_stir())

    def send(self, sent: Sent, message: Message) -> None:
        """Send what was taken from the backlog; raises ``MqttError`` if the connection is over."""
        info = self._client.publish(
            message.topic,
            message.payload,
            qos=1,
            retain=message.retain,
            properties=_properties(message, PacketTypes.PUBLISH) if self.five else None,
        )
        if info.rc != 0:
            raise MqttCodeError(info.rc, "the connection is over")
        self.sent[info.mid] = (sent, message)

    async def listen(self, topics: list[str]) -> dict[str, str]:
        """Subscribe to topics; return why the broker refuses those that it does."""
        refused = {}
        for topic in topics:
            options = None
            if self.five:  # what was said before we came is not for us
                options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            for answer in await self.subscribe(topic, qos=0 if options else 1, options=options):
                code = answer.value if isinstance(answer, ReasonCode) else answer
                if code >= _REFUSED:
                    refused[topic] = str(answer) if isinstance(answer, ReasonCode) else "it is not allowed"
        return refused

    def rest(self) -> list[Sent]:
        """Give back what the broker has not acknowledged."""
        rest = [sent for sent, _message in self.sent.values()]
        self.sent.clear()
        return rest

    async def connect(self) -> None:
        """Begin; raises ``MqttError`` if the broker cannot be reached or does not let us in."""
        try:
            await self.__aenter__()
        except MqttError:
            self._client.disconnect()  # it may be there all the same, and only slow
            raise

    async def leave(self) -> None:
        """End the connection in order, so that the broker does not tell the last will."""
        with contextlib.suppress(MqttError, OSError):
            async with asyncio.timeout(_PATIENCE):
                await self.__aexit__(None, None, None)

    def _on_publish(
        self,
        client: PahoClient,
        userdata: Any,
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,
    ) -> None:
        """Hear of an acknowledgement; of MQTT 5 it may be a refusal, which aiomqtt would not tell."""
        if (found := self.sent.pop(mid, None)) is None:
            return
        refused = str(reason_code) if self.five and reason_code.value >= _REFUSED else None
        self._on_told(*found, refused)
        if len(self.sent) < WINDOW // 2:
            self._on_stir()


class _Packed(Properties):  # type: ignore[misc,unused-ignore]  # paho's class
    """Properties as bytes: to pack them anew for each message costs as much as to send it."""

    def __init__(self, kind: int, packed: bytes) -> None:
        super().__init__(kind)  # type: ignore[no-untyped-call]  # paho's
        object.__setattr__(self, "_packed", packed)

    def pack(self) -> bytes:
        return self._packed  # type: ignore[no-any-return,attr-defined,unused-ignore]


def _properties(message: Message, kind: int) -> Properties | None:
    if message.trace:
        return _make(kind, message.expiry, message.trace)
    return _packed(kind, message.expiry)


@lru_cache(maxsize=64)
def _packed(kind: int, expiry: int | None) -> Properties:
    properties = _make(kind, expiry, None)
    return _Packed(kind, properties.pack())  # type: ignore[no-untyped-call]  # paho's


def _make(kind: int, expiry: int | None, trace: Mapping[str, str] | None) -> Properties:
    properties = Properties(kind)  # type: ignore[no-untyped-call]  # paho's
    properties.ContentType = "application/json"
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    if trace:
        properties.UserProperty = list(trace.items())
    return properties
