"""Settings: one object, validated once, with errors that say what to do."""

import base64
import json
import os
import socket
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)

from processor.brokers import broker, check_broker, topic_prefix
from processor.errors import ConfigError
from processor.sources import DEFAULT, Gathered, Known, Origin, gather, near_misses
from processor.spool import default_directory

KEY_VARIABLES = ("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY", "SUPABASE_KEY")
ANON_VARIABLES = ("SUPABASE_ANON_KEY", "SUPABASE_PUBLISHABLE_KEY")


def _url(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = urlsplit(value.strip())
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError(f"{value!r} must look like https://abcdefgh.supabase.co")
    if "@" in parts.netloc:
        raise ValueError("must hold no user and no password: keys have settings of their own")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/rest/v1')}"


def _key(value: Any) -> Any:
    """Take a key as it goes into a header; what a header cannot carry would be shown in an error there."""
    if not isinstance(value, str):
        return value
    key = value.strip()
    if not all("!" <= character <= "~" for character in key):
        raise ValueError(
            "the key has spaces or special characters in it: copy it again, whole and on one line"
        )
    return key


def _feed(value: Any) -> Any:
    if value == "realtime":
        raise ValueError(
            "'realtime' is now called 'postgres_changes', which is the default; 'broadcast' and 'polling' "
            "are the others"
        )
    return value


def _directory(value: Any) -> Any:
    """Take a directory, or the word for having none."""
    if isinstance(value, str):
        return None if value.strip().lower() == "none" else Path(value).expanduser().absolute()
    return value


def _names(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


def _origins(value: Any) -> Any:
    """Take the origins of pages, as browsers write them: no path, not even a slash."""
    names = _names(value)
    for origin in names if isinstance(names, (tuple, list)) else ():
        parts = urlsplit(origin) if isinstance(origin, str) else None
        if origin != "*" and (
            parts is None or origin != f"{parts.scheme}://{parts.netloc}" or not parts.netloc
        ):
            raise ValueError(f"{origin!r} must look like https://app.example.com, without a slash at its end")
    return names


def _networks(value: Any) -> Any:
    """Take networks, or single addresses, as routers write them."""
    names = _names(value)
    if not isinstance(names, (tuple, list)):
        return names
    networks = []
    for name in names:
        try:
            networks.append(ip_network(name))
        except ValueError as error:
            raise ValueError(f"{name!r} must look like 10.1.0.0/16 or fd00::/8: {error}") from None
    return tuple(networks)


def _cores() -> int:
    """Count the cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseModel):
    """Everything the daemon can be told.

    ``SUPABASE_URL`` and a key are needed; ``PROCESSOR_*`` has defaults. ``.env.example`` lists all.
    :func:`load` looks for the values; an object made otherwise has those it is given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, BeforeValidator(_url)]
    """Address of the Supabase project."""
    key: Annotated[SecretStr, BeforeValidator(_key)] = Field(min_length=1)
    """A key whose role may work on jobs: service_role, a secret key, or a job_processor token."""
    anon_key: Annotated[SecretStr | None, BeforeValidator(_key)] = None
    """The publishable key: only needed beside a job_processor token."""

    name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=200)
    """How operators know this worker."""
    queues: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    """Queues to work on; empty: those of the handlers."""
    slots: int = Field(3, ge=1, le=1000)
    """Jobs running at the same time."""
    item_concurrency: int = Field(3, ge=1, le=1000)
    """Items of one job running at the same time, where the handler does not say otherwise."""
    processes: int = Field(default_factory=_cores, ge=1, le=1000)
    """Processes for handlers declared with ``process=True``; by default one for each core."""
    lease_seconds: float = Field(90, ge=3, le=3600)
    """Until others take over the jobs of a silent worker; a heartbeat every third of it."""
    poll_seconds: float = Field(5, gt=0, le=300)
    """Between two looks at the queue while Realtime is unhealthy."""
    health_seconds: float = Field(30, gt=0, le=600)
    """Between two judgements of the Realtime connection."""
    probe_seconds: float = Field(15, gt=0, le=600)
    """How long the Realtime connection may be silent before it must prove that it lives."""
    feed: Annotated[Literal["postgres_changes", "broadcast", "polling"], BeforeValidator(_feed)] = (
        "postgres_changes"
    )
    """How workers learn of jobs: changes of rows, messages that the database sends, or the clock alone."""
    grace_seconds: float = Field(30, ge=0, le=3600)
    """How long running jobs may go on after SIGTERM."""
    cancel_grace_seconds: float = Field(10, ge=0, le=600)
    """How long a cancelled handler may clean up."""
    maintenance_seconds: float = Field(300, ge=0, le=86400)
    """Between two rounds of housekeeping, which clear away jobs and credits whose time is over; 0: never."""
    spool_dir: Annotated[Path | None, BeforeValidator(_directory)] = Field(default_factory=default_directory)
    """Where outcomes are kept while the API is away; none: in memory only."""
    spool_max_mb: int = Field(64, ge=1, le=65536)
    """How large the file there may become, in megabytes."""
    http_host: str = "127.0.0.1"
    """Address of /healthz and /readyz, and of what else is switched on."""
    http_port: int | None = Field(None, ge=0, le=65535)
    """Port of /healthz and /readyz; unset: off, 0: any free one."""
    metrics: bool = True
    """Whether /metrics is served there, for Prometheus."""
    otel: Annotated[tuple[Literal["traces", "metrics"], ...], BeforeValidator(_names)] = ()
    """What OpenTelemetry gets: attempts as spans, metrics, or both; ``OTEL_*`` variables say where."""
    http_jobs: bool = False
    """Whether signed-in users can watch their jobs there: /jobs/{id} and /jobs/{id}/events."""
    http_streams: int = Field(100, ge=1, le=10000)
    """How many of them at the same time."""
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = ()
    """Origins of the pages that may do that; empty: only pages of the same origin; *: all."""
    panel: bool = False
    """Whether the panel's page is served there: /panel/."""
    webhooks: bool = False
    """Whether this daemon delivers webhooks too."""
    webhook_slots: int = Field(10, ge=1, le=1000)
    """How many at the same time, beside ``slots``."""
    webhook_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], BeforeValidator(_networks)] = ()
    """Networks that they may go to although they are private."""
    mqtt_url: Annotated[str | None, BeforeValidator(broker)] = None
    """The MQTT broker that is told of jobs, workers and queues: mqtts://host, mqtt://host:1883."""
    mqtt_username: SecretStr | None = None
    """Who the daemon is there; none: anonymous, or whoever the client certificate says."""
    mqtt_password: SecretStr | None = None
    """The password."""
    mqtt_ca_file: Annotated[Path | None, BeforeValidator(_directory)] = None
    """The authority that the broker's certificate is signed by; none: one that the system trusts."""
    mqtt_cert_file: Annotated[Path | None, BeforeValidator(_directory)] = None
    """A client certificate, where the broker wants one."""
    mqtt_key_file: Annotated[Path | None, BeforeValidator(_directory)] = None
    """Its key, if that is in a file of its own."""
    mqtt_prefix: Annotated[str, BeforeValidator(topic_prefix)] = "processor"
    """What all topics begin with."""
    mqtt_retain_seconds: int = Field(600, ge=1, le=31_536_000)
    """How long the broker keeps the last word on a job, or on a worker, that has ended."""
    mqtt_rate: int = Field(500, ge=1, le=100_000)
    """How many messages a second are sent at most: more would take time from jobs. The rest waits."""
    mqtt_outbox_max_mb: int = Field(64, ge=1, le=65536)
    """How large the file in ``spool_dir`` may become where ends of jobs wait for the broker: megabytes."""
    mqtt_control: bool = False
    """Whether the daemon obeys the control topics: wake-ups, pause, resume, drain."""
    alert_webhook: SecretStr | None = None
    """Where ``processor maintain`` posts what is wrong; it is a secret, as such addresses often are."""
    alert_repeat_seconds: float = Field(14400, ge=60, le=604800)
    """After how long it posts again what is still wrong."""
    alert_queue_depth: int = Field(20, ge=1, le=9999)
    """More due jobs of a queue than this are wrong, for ``processor maintain`` and ``processor status``."""
    sentry_dsn: SecretStr | None = None
    """Where Sentry, or what speaks its protocol, collects errors that nobody expected; unset: off."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, json elsewhere; in systemd's journal with its priorities."""
    log_file: Annotated[Path | None, BeforeValidator(_directory)] = None
    """A file for the log, where there is no journal; none: stderr. Each daemon needs its own."""
    log_file_max_mb: int = Field(100, ge=0, le=65536)
    """Megabytes at which it is renamed; five such files are kept. 0: somebody else does it."""
    log_repeats: int = Field(100, ge=0, le=1_000_000)
    """How often the same warning or error is logged in a minute; the rest is counted. 0: always."""

    _origins: Mapping[str, Origin] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(())
    _reread: Callable[[], str] | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _public_key_is_public(self) -> Self:
        key = "" if self.anon_key is None else self.anon_key.get_secret_value()
        if key.startswith("sb_secret_") or role_of(key) == "service_role":
            raise ValueError(
                "SUPABASE_ANON_KEY: this is the service_role (or secret) key, which may do anything and must "
                "reach no browser. Take the anon (or publishable) key from the project's API settings."
            )
        return self

    @model_validator(mode="after")
    def _web_has_what_it_needs(self) -> Self:
        for name, on in (("PROCESSOR_HTTP_JOBS", self.http_jobs), ("PROCESSOR_PANEL", self.panel)):
            if on and self.http_port is None:
                raise ValueError(
                    f"{name}: needs a port to be served on: set PROCESSOR_HTTP_PORT, to 8080 perhaps"
                )
            if on and self.anon_key is None:
                raise ValueError(
                    f"{name}: needs SUPABASE_ANON_KEY, the anon (or publishable) key from the project's API "
                    "settings: what users see is asked for with it, never with the daemon's own key"
                )
        return self

    @model_validator(mode="after")
    def _broker_has_what_it_needs(self) -> Self:
        check_broker(
            self.mqtt_url,
            password_alone=self.mqtt_password is not None and self.mqtt_username is None,
            ca_file=self.mqtt_ca_file,
            cert_file=self.mqtt_cert_file,
            key_file=self.mqtt_key_file,
        )
        return self

    @model_validator(mode="after")
    def _right_kind_of_key(self) -> Self:
        key = self.key.get_secret_value()
        if key.startswith("sb_publishable_") or role_of(key) in {"anon", "authenticated"}:
            raise ValueError(
                "SUPABASE_SERVICE_ROLE_KEY: this is the public key, whose role may not work on jobs. "
                "Take the service_role (or secret) key from the project's API settings."
            )
        return self

    @property
    def api_key(self) -> str:
        """What goes into the ``apikey`` header: the key itself, unless it is a token of a lesser role."""
        key = self.key.get_secret_value()
        if self.anon_key is not None and role_of(key) not in {None, "service_role"}:
            return self.anon_key.get_secret_value()
        return key

    def read_key(self) -> str:
        """Return the key, read again if it came from a file: a new one may be in it by now.

        Raises:
            ConfigError: the file is gone, empty, or holds what is no key.

        """
        if self._reread is None:
            return self.key.get_secret_value()
        try:
            return Settings(url=self.url, key=self._reread()).key.get_secret_value()
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(error, Gathered(), {}))) from None

    def origin(self, name: str) -> Origin:
        """Say where the value of a field came from."""
        return self._origins.get(name, DEFAULT)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about where the values came from, in sentences."""
        return self._warnings

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every value that must not reach a log."""
        values = (self.key, self.anon_key, self.alert_webhook, self.sentry_dsn, self.mqtt_password)
        return tuple(s.get_secret_value() for s in values if s is not None)


SECRETS = ("key", "anon_key", "alert_webhook", "sentry_dsn", "mqtt_username", "mqtt_password")
"""The fields that nobody may see, and that may come from files."""


def variables(name: str) -> tuple[str, ...]:
    """Return the variables that set a field, the preferred one first."""
    named = {"url": ("SUPABASE_URL",), "key": KEY_VARIABLES, "anon_key": ANON_VARIABLES}
    return named.get(name, (f"PROCESSOR_{name.upper()}",))


def load(
    *, config: Path | None = None, environment: Mapping[str, str] | None = None, **given: Any
) -> Settings:
    """Look for the settings wherever they may be (:mod:`processor.sources` has the order).

    Args:
        config: a TOML file; None: the one that ``PROCESSOR_CONFIG`` names, if it is set.
        environment: the variables; None: those of this process.
        given: values by field that win over all others; None counts as not given.

    Raises:
        ConfigError: lists everything that is missing, unknown or wrong.

    """
    environment = os.environ if environment is None else environment
    known = _known()
    given = {name: value for name, value in given.items() if value is not None}
    gathered = gather(known, given, environment, config)
    try:
        settings = Settings(**{name: found.value for name, found in gathered.found.items()})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, gathered, environment))) from None
    if gathered.problems:
        raise ConfigError("\n".join([_WRONG, *(f"  {problem}" for problem in gathered.problems)]))
    settings._origins = {name: found.origin for name, found in gathered.found.items()}  # noqa: SLF001  ours
    settings._warnings = tuple(gathered.warnings)  # noqa: SLF001  ours
    settings._reread = gathered.found["key"].read  # noqa: SLF001  ours
    return settings


def role_of(key: str) -> str | None:
    """Return the role that a JWT claims (unverified), or None for a key of another form."""
    role = claims_of(key).get("role")
    return role if isinstance(role, str) else None


def claims_of(key: str) -> dict[str, Any]:
    """Return what a JWT claims (unverified); nothing for a key of another form."""
    try:
        payload = key.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _known() -> Known:
    return Known({name: variables(name) for name in Settings.model_fields}, SECRETS)


_WRONG = "The configuration is not complete, or not right:"


def _explain(error: ValidationError, gathered: Gathered, environment: Mapping[str, str]) -> list[str]:
    lines = [_WRONG]
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if problem["loc"] else ""
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            text = f"is not set.{near_misses(_known(), environment, variables(name)[0])} " + (
                "The address of the project, like https://abcdefgh.supabase.co"
                if name == "url"
                else "The service_role (or secret) key from the project's API settings"
            )
        lines.append(f"  {_place(name, gathered)}: {text}" if name else f"  {text}")
    return lines + [f"  {problem}" for problem in gathered.problems]


def _place(name: str, gathered: Gathered) -> str:
    """Name what a user would change: the variable, and where else the value came from, if it did."""
    found = gathered.found.get(name)
    variable = variables(name)[0]
    if found is None or found.origin.name == variable:
        return variable
    return f"{variable} ({found.origin})"
