"""Whoever may write a URL tries to have this machine reach what only it can reach: nobody is asked."""

import asyncio
import copy
import functools
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest
import uvloop

from processor.errors import ErrorCode, JobError
from processor.webhooks.guard import Guard, is_public, read_url, resolve
from processor.webhooks.sender import Sender
from tests.webhooks.receiver import Receiver

SECRET = "whsec_" + "bm9ib2R5IGtub3dzIGl0IG9mIGNvdXJzZSEh"
PUBLIC = "93.184.215.14"
HERE = [ip_network("127.0.0.0/8"), ip_network("0.0.0.0/8")]

WRITTEN_OTHERWISE = {
    "as it is": "127.0.0.1",
    "decimal": "2130706433",
    "hexadecimal": "0x7f000001",
    "octal": "017700000001",
    "hexadecimal parts": "0x7f.0x0.0x0.0x1",
    "mixed parts": "0x7f.0.01",
    "two parts": "127.1",
    "three parts": "127.0.1",
    "another one of the loop": "127.255.255.254",
    "nothing": "0",
    "all zeros": "0.0.0.0",
    "ideographic dots": "127。0。0。1",
    "IPv4 in IPv6": "[::ffff:127.0.0.1]",
    "IPv4 in IPv6, hexadecimal": "[::ffff:7f00:1]",
    "IPv4 in IPv6, in full": "[0:0:0:0:0:ffff:7f00:0001]",
}
"""Ways to write this machine that a system understands: with the guard away they arrive."""

ELSEWHERE = {
    "IPv6 loopback": "[::1]",
    "IPv6 nothing": "[::]",
    "IPv4-compatible": "[::127.0.0.1]",
    "NAT64": "[64:ff9b::7f00:1]",
    "local NAT64": "[64:ff9b:1::7f00:1]",
    "6to4": "[2002:7f00:1::]",
    "Teredo": "[2001:0:7f00:1::]",
    "link-local": "[fe80::1]",
    "site-local": "[fec0::1]",
    "unique local": "[fd12:3456:789a::1]",
    "IPv6 multicast": "[ff02::1]",
    "IPv6 for examples": "[2001:db8::1]",
    "metadata": "169.254.169.254",
    "metadata, decimal": "2852039166",
    "metadata, hexadecimal": "0xa9fea9fe",
    "metadata by IPv6": "[fd00:ec2::254]",
    "metadata of another cloud": "192.0.0.192",
    "metadata of a third": "100.100.100.200",
    "metadata of a fourth": "168.63.129.16",
    "private A": "10.0.0.1",
    "private B": "172.31.255.255",
    "private C": "192.168.0.1",
    "carriers' NAT": "100.64.0.1",
    "benchmarks": "198.18.0.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "for examples": "203.0.113.7",
    "6to4 relays": "192.88.99.1",
}

BY_NAME = {
    "localhost": ["127.0.0.1", "::1"],
    "localhost.": ["127.0.0.1"],
    "127.0.0.1.": ["127.0.0.1"],
    "loop.example.com": ["127.0.0.1"],
    "inside.example.com": ["10.1.2.3"],
    "metadata.google.internal": ["169.254.169.254"],
    "both.example.com": [PUBLIC, "127.0.0.1"],
    "six.example.com": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::1"],
    "mapped.example.com": ["::ffff:127.0.0.1"],
    "link.example.com": ["fe80::1%lo"],
}

NOT_EVEN_A_URL = {
    "a user": "https://public.example@{here}/",
    "user and password": "https://a:b@{here}/",
    "a user that looks like the host": "https://public.example%2F@{here}/",
    "a backslash": "https://{here}\\@public.example/",
    "a backslash the other way": "https://public.example\\@{here}/",
    "octal parts": "https://0177.0.0.01:{port}/",
    "a zone": "https://[fe80::1%25lo]:{port}/",
    "a null": "https://localhost%00.public.example:{port}/",
    "a blank": "https://127.0.0.1 public.example:{port}/",
    "a line": "https://127.0.0.1\r\nhost: x:{port}/",
    "no host": "https:///hooks",
    "no slashes": "https:127.0.0.1:{port}",
    "full width": "https://１２７.０.０.１:{port}/",  # noqa: RUF001 - that is the trick
    "circled": "https://①②⑦.⓪.⓪.①:{port}/",
    "port 0": "https://127.0.0.1:0/",
    "port of another world": "https://127.0.0.1:65536000/",
    "http": "http://{here}/",
    "HTTP": "HTTP://{here}/",
    "a file": "file:///etc/passwd",
    "gopher": "gopher://{here}/_x",
    "ftp": "ftp://{here}/",
    "data": "data:text/plain,x",
    "nothing": "",
    "very long": "https://127.0.0.1/" + "a" * 2048,
}


async def look_up(host: str, port: int) -> Sequence[str]:
    return BY_NAME.get(host) or await resolve(host, port)


@functools.cache
def _sender() -> Sender:
    """Return one whose list of authorities has been read, which takes time."""
    return Sender(Guard())


async def sent(url: str, guard: Guard, *, plain: bool = True) -> JobError | None:
    """Send to a URL; returns why that did not work."""
    sender = copy.copy(_sender())
    sender._guard = guard
    try:
        await sender.send(url, "msg_1", b"{}", [SECRET], within=10, plain=plain)
    except JobError as error:
        return error
    return None


@pytest.fixture
async def listener(receivers) -> Receiver:
    """Give whoever would be reached: without TLS, so that the address is all that stands in the way."""
    return await receivers(None)


@pytest.mark.parametrize("host", WRITTEN_OTHERWISE.values(), ids=list(WRITTEN_OTHERWISE))
async def test_this_machine_is_refused_however_it_is_written(listener: Receiver, host: str) -> None:
    refused = await sent(f"http://{host}:{listener.port}/", Guard(resolver=look_up))
    assert refused is not None
    assert refused.code == ErrorCode.WEBHOOK_REFUSED
    assert "is no public address; PROCESSOR_WEBHOOK_ALLOW" in str(refused)
    assert listener.connections == 0


@pytest.mark.parametrize("host", WRITTEN_OTHERWISE.values(), ids=list(WRITTEN_OTHERWISE))
async def test_without_the_guard_such_a_way_to_write_it_leads_there(receivers, host: str) -> None:
    listener = await receivers(None, host="127.255.255.254" if "255" in host else "127.0.0.1")
    assert await sent(f"http://{host}:{listener.port}/", Guard(HERE, look_up)) is None
    assert len(listener.hooks) == 1


@pytest.mark.parametrize("host", ELSEWHERE.values(), ids=list(ELSEWHERE))
async def test_addresses_that_are_not_the_internets_are_refused(host: str) -> None:
    refused = await sent(f"https://{host}/", Guard(resolver=look_up))
    assert refused is not None
    assert refused.code == ErrorCode.WEBHOOK_REFUSED
    assert "is no public address" in str(refused)


@pytest.mark.parametrize("name", BY_NAME)
async def test_a_name_is_refused_if_one_of_its_addresses_is(listener: Receiver, name: str) -> None:
    refused = await sent(f"http://{name}:{listener.port}/", Guard(resolver=look_up))
    assert refused is not None
    assert (refused.code, refused.retryable) == (ErrorCode.WEBHOOK_REFUSED, True)
    assert f"{name} is " in str(refused)
    assert listener.connections == 0


@pytest.mark.parametrize("url", NOT_EVEN_A_URL.values(), ids=list(NOT_EVEN_A_URL))
async def test_what_two_readers_might_read_differently_is_refused_unresolved(
    listener: Receiver, url: str
) -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        raise AssertionError(f"{host} was looked up")

    wanted = url.replace("{here}", f"127.0.0.1:{listener.port}").replace("{port}", str(listener.port))
    refused = await sent(wanted, Guard(HERE, never), plain=False)
    assert refused is not None
    assert (refused.code, refused.retryable) == (ErrorCode.WEBHOOK_REFUSED, False)
    assert str(refused).startswith("the webhook is not sent: ")
    assert listener.connections == 0


async def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_looked_at(receivers) -> None:
    """DNS rebinding: the first answer is harmless, every later one is not."""
    inside = await receivers(None)
    harmless = await receivers(None, host="127.0.0.2", port=inside.port)
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.2"] if len(asked) == 1 else ["127.0.0.1"]

    guard = Guard([ip_network("127.0.0.2/32")], rebinding)
    url = f"http://rebind.example.com:{inside.port}/"
    assert await sent(url, guard) is None
    assert (len(asked), len(harmless.hooks), inside.connections) == (1, 1, 0)
    refused = await sent(url, guard)
    assert "rebind.example.com is 127.0.0.1, which is no public address" in str(refused)
    assert (len(asked), len(harmless.hooks), inside.connections) == (2, 1, 0)


async def test_a_name_that_is_not_there_may_be_there_later() -> None:
    async def nobody(host: str, port: int) -> Sequence[str]:
        raise OSError("Name or service not known")

    async def nothing(host: str, port: int) -> Sequence[str]:
        return []

    for resolver in (nobody, nothing):
        refused = await sent("https://gone.example.com/", Guard(resolver=resolver))
        assert refused is not None
        assert (refused.code, refused.retryable) == (ErrorCode.UPSTREAM_UNAVAILABLE, True)
    bad = await sent(f"https://{'a' * 70}.example.com/", Guard())
    assert bad is not None
    assert bad.code == ErrorCode.UPSTREAM_UNAVAILABLE


async def test_only_the_networks_that_were_named_are_allowed(listener: Receiver) -> None:
    near = Guard([ip_network("127.0.0.0/30")], look_up)
    assert await sent(f"http://127.0.0.1:{listener.port}/", near) is None
    assert "127.0.0.4 is no public address" in str(await sent(f"http://127.0.0.4:{listener.port}/", near))


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "2001:4860:4860::8888"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("host", WRITTEN_OTHERWISE.values(), ids=list(WRITTEN_OTHERWISE))
def test_the_daemons_event_loop_reads_addresses_as_this_one_does(host: str) -> None:
    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.raises(JobError, match="is no public address"),
    ):
        runner.run(Guard().addresses(read_url(f"https://{host}/")))


def test_a_url_is_shown_without_its_path() -> None:
    destination = read_url("https://hooks.example.com:8443/T0KEN?secret=1")
    assert str(destination) == "https://hooks.example.com:8443"
    assert destination.target == "/T0KEN?secret=1"
    assert str(read_url("https://bücher.example/")) == "https://xn--bcher-kva.example"
