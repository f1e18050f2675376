"""The feed's timings: every duration in one place, in seconds."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedTimings:
    """Durations of the feed, in seconds.

    The defaults keep an idle worker cheap on hosted quotas and notice a dead feed within 20 s;
    REALTIME.md says what each one costs and when to change it.
    """

    health_interval: float = 30.0
    """Between two judgements of a live incarnation; one that passes a judgement resets the backoff."""
    poll_interval: float = 5.0
    """The longest pause between two polls while Realtime is unhealthy."""
    probe_interval: float = 15.0
    """How long the channel may be silent before a broadcast acknowledgement is asked for."""
    ack_timeout: float = 4.0
    """How long that acknowledgement may take."""
    echo_timeout: float = 8.0
    """How long the worker's own heartbeat may take to come back as a change."""
    open_timeout: float = 5.0
    """For TCP, TLS and the websocket handshake together."""
    join_timeout: float = 10.0
    """From the join to the server's word that changes are streamed."""
    close_timeout: float = 2.0
    """For the closing handshake, after which the transport is aborted."""
    backoff_base: float = 0.5
    """Upper bound of the first pause before a reconnect; it doubles with every failure."""
    backoff_cap: float = 5.0
    """Upper bound of any pause before a reconnect."""
    refused_cap: float = 30.0
    """The same where the server said no (rate limit, key): insisting would make it worse."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"the feed's {field.name} must be more than 0 seconds, not {value!r}")
