"""Settings from the environment, validated once, with errors that say what to do."""

import base64
import json
import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from processor.errors import ConfigError
from processor.spool import default_directory

KEY_VARIABLES = ("SUPABASE_SERVICE_ROLE_KEY", "SUPABASE_SECRET_KEY", "SUPABASE_KEY")
ANON_VARIABLES = ("SUPABASE_ANON_KEY", "SUPABASE_PUBLISHABLE_KEY")


def _url(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    parts = urlsplit(value.strip())
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError(f"{value!r} must look like https://abcdefgh.supabase.co")
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


def _directory(value: Any) -> Any:
    """Take a directory, or the word for having none."""
    if isinstance(value, str):
        return None if value.strip().lower() == "none" else Path(value).expanduser().absolute()
    return value


def _names(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return value


class Settings(BaseSettings):
    """Everything the daemon can be told.

    ``SUPABASE_URL`` and a key are needed; ``PROCESSOR_*`` has defaults. ``.env.example`` lists all.
    """

    model_config = SettingsConfigDict(
        env_prefix="PROCESSOR_", env_ignore_empty=True, frozen=True, populate_by_name=True, extra="ignore"
    )

    url: Annotated[str, BeforeValidator(_url)] = Field(validation_alias=AliasChoices("SUPABASE_URL", "url"))
    """Address of the Supabase project."""
    key: Annotated[SecretStr, BeforeValidator(_key)] = Field(
        min_length=1, validation_alias=AliasChoices(*KEY_VARIABLES, "key")
    )
    """A key whose role may work on jobs: service_role, a secret key, or a job_processor token."""
    anon_key: Annotated[SecretStr | None, BeforeValidator(_key)] = Field(
        None, validation_alias=AliasChoices(*ANON_VARIABLES, "anon_key")
    )
    """The publishable key: only needed beside a job_processor token."""

    name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=200)
    """How operators know this worker."""
    queues: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = ()
    """Queues to work on; empty: those of the handlers."""
    slots: int = Field(3, ge=1, le=1000)
    """Jobs running at the same time."""
    item_concurrency: int = Field(3, ge=1, le=1000)
    """Items of one job running at the same time, where the handler does not say otherwise."""
    processes: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1, le=1000)
    """Processes for handlers declared with ``process=True``; by default one for each core."""
    lease_seconds: float = Field(90, ge=3, le=3600)
    """Until others take over the jobs of a silent worker; a heartbeat every third of it."""
    poll_seconds: float = Field(5, gt=0, le=300)
    """Between two looks at the queue while Realtime is unhealthy."""
    health_seconds: float = Field(30, gt=0, le=600)
    """Between two judgements of the Realtime connection."""
    feed: Literal["realtime", "polling"] = "realtime"
    """polling: never use Realtime."""
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
    """Address of /healthz and /readyz."""
    http_port: int | None = Field(None, ge=0, le=65535)
    """Port of /healthz and /readyz; unset: off, 0: any free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least level that is logged."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, json elsewhere."""

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

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every value that must not reach a log."""
        return tuple(s.get_secret_value() for s in (self.key, self.anon_key) if s is not None)


def load(**overrides: Any) -> Settings:
    """Read the environment; ``overrides`` (by field name, None = not given) win.

    Raises :class:`ConfigError`, which lists every variable that is missing or wrong.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error))) from None


def role_of(key: str) -> str | None:
    """Return the role that a JWT claims (unverified), or None for a key of another form."""
    try:
        payload = key.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return None
    role = claims.get("role") if isinstance(claims, dict) else None
    return role if isinstance(role, str) else None


def _explain(error: ValidationError) -> list[str]:
    lines = ["The configuration is not complete:"]
    for problem in error.errors(include_url=False):
        variable = _variable(str(problem["loc"][0])) if problem["loc"] else ""
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            text = "is not set. " + (
                "The address of the project, like https://abcdefgh.supabase.co"
                if variable == "SUPABASE_URL"
                else "The service_role (or secret) key from the project's API settings"
            )
        lines.append(f"  {variable}: {text}" if variable else f"  {text}")
    return lines


def _variable(location: str) -> str:
    """Turn a field or alias into the variable a user would set."""
    if location in {*KEY_VARIABLES, "key"}:
        return KEY_VARIABLES[0]
    if location in {*ANON_VARIABLES, "anon_key"}:
        return ANON_VARIABLES[0]
    if location in {"SUPABASE_URL", "url"}:
        return "SUPABASE_URL"
    return location if location.startswith("PROCESSOR_") else f"PROCESSOR_{location.upper()}"
