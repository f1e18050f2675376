"""Where a webhook may go. Whoever writes its URL must not reach what only this machine can reach.

What counts is the address of a connection, not the text of a URL: there are too many ways to write one. A
host is resolved here, once; every address it has must be public, or in a network that
``PROCESSOR_WEBHOOK_ALLOW`` names; and the connection is made to an address that was looked at, so that a name
which means something else a moment later changes nothing.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpcore
import httpx

from processor.errors import ErrorCode, JobError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → its addresses as text, the preferred one first; raises ``OSError`` if there are none."""

_HOST = re.compile(r"[a-z0-9._-]{1,253}")
_PORTS = {"https": 443, "http": 80}
_LONGEST_URL = 2048

_GLOBAL_UNICAST = ip_network("2000::/3")
"""All that the internet routes of IPv6; the rest is local, reserved, or a way to write an IPv4 address."""
_NAT64 = ip_network("64:ff9b::/96")
_NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments, a cloud's metadata among them
        "192.88.99.0/24",  # relays of 6to4
        "168.63.129.16/32",  # Azure's host, which looks public and is not
        "2001::/23",  # Teredo, which has IPv4 addresses in it, and the like
        "2001:db8::/32",
        "2002::/16",  # 6to4, likewise
        "3fff::/20",
    )
)
"""What Python's own list does not know in every version, or takes for public."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL that may be asked, as far as its text tells."""

    scheme: str
    host: str
    port: int
    authority: str
    """What the ``Host`` header says."""
    target: str
    """Path and query; often a secret."""

    def __str__(self) -> str:
        """Name it without its path, which often is a secret."""
        return f"{self.scheme}://{self.authority}"


def read_url(url: str, *, plain: bool = False) -> Destination:
    """Take a URL apart; there is no other reading of it afterwards. ``plain``: it may be http.

    Raises:
        JobError: WEBHOOK_REFUSED, for good: it is no URL of a webhook.

    """
    if len(url) > _LONGEST_URL:
        raise _refused(f"its URL has {len(url)} characters, more than {_LONGEST_URL}")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise _refused("its URL cannot be read: write it like https://example.com/hooks") from error
    if parsed.scheme != "https" and not (plain and parsed.scheme == "http"):
        raise _refused(f"its URL begins with {parsed.scheme[:20]!r}: webhooks are sent by https")
    if parsed.userinfo or "\\" in url:
        raise _refused("its URL has a user or a password in it, or a backslash: leave them out")
    host = parsed.raw_host.decode("ascii")
    if not _HOST.fullmatch(host) and not _is_ipv6(host):
        raise _refused(f"{host[:100]!r} is no host that a webhook can be sent to")
    port = _PORTS[parsed.scheme] if parsed.port is None else parsed.port
    if not 1 <= port <= 65535:
        raise _refused(f"its URL names port {port}: there are those from 1 to 65535")
    target = parsed.raw_path.decode("ascii")
    return Destination(parsed.scheme, host, port, parsed.netloc.decode("ascii"), target)


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system for the addresses of a host, which may be one itself, in any form the system reads."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_rest, address in found))


class Guard:
    """Finds the addresses that a webhook may be sent to.

    ``allowed`` networks are fine although they are private.
    """

    def __init__(self, allowed: Iterable[Network] = (), resolver: Resolver = resolve) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolver

    async def addresses(self, destination: Destination) -> Sequence[Address]:
        """Return where to connect, the preferred address first.

        Raises:
            JobError: WEBHOOK_REFUSED: one of its addresses may not be asked; or UPSTREAM_UNAVAILABLE:
                it has none now.

        """
        host = destination.host
        try:
            texts = await self._resolve(host, destination.port)
        except (OSError, UnicodeError) as error:
            raise JobError(
                f"the host {host!r} cannot be found: {error}", code=ErrorCode.UPSTREAM_UNAVAILABLE
            ) from error
        found = [_address(text) for text in texts]
        if not found:
            raise JobError(f"the host {host!r} has no address", code=ErrorCode.UPSTREAM_UNAVAILABLE)
        for address in found:
            if is_public(address) or any(address in network for network in self._allowed):
                continue
            which = host if host == str(address) else f"{host} is {address}, which"
            raise _refused(
                f"{which} is no public address; PROCESSOR_WEBHOOK_ALLOW names others that it may go to",
                for_good=False,
            )
        return found


class GuardedConnections(httpcore.AsyncNetworkBackend):
    """Opens connections to one destination: to addresses that the guard has looked at, and no others."""

    def __init__(self, guard: Guard, destination: Destination) -> None:
        self._guard = guard
        self._destination = destination
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that lets us; the name stays what TLS and ``Host`` speak of."""
        if (host, port) != (self._destination.host, self._destination.port):
            raise _refused(f"{host}:{port} is not where this webhook goes")
        failed: Exception | None = None
        addresses = await self._guard.addresses(self._destination)
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    str(address), port, None if timeout is None else timeout / len(addresses)
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed or httpcore.ConnectError(f"{host} has no address")


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's, whatever it looks like."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:  # a network without IPv4 reaches it by such addresses
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _GLOBAL_UNICAST or address.scope_id is not None:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _NOT_PUBLIC)
    )


def _address(text: str) -> Address:
    """Read an address; one that is IPv4 written as IPv6 is what it will be for the kernel."""
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _is_ipv6(host: str) -> bool:
    try:
        return IPv6Address(host).scope_id is None
    except ValueError:
        return False


def _refused(reason: str, *, for_good: bool = True) -> JobError:
    """Describe a refusal; what a name means may change, so that one is looked at again."""
    return JobError(
        f"the webhook is not sent: {reason}", code=ErrorCode.WEBHOOK_REFUSED, retryable=not for_good
    )
