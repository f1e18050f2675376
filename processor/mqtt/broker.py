"""Where the broker is and how to be let in; and what to do about its refusals."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from aiomqtt import MqttCodeError, MqttError
from paho.mqtt.reasoncodes import ReasonCode

from processor.config import Settings
from processor.errors import ConfigError

_BAD_VERSION = frozenset({1, 132})
"""CONNACK's codes, of MQTT 3.1.1 and 5: the broker does not speak this version."""
_NOT_LET_IN = frozenset({4, 5, 134, 135})
"""Bad user name or password, not authorised."""


@dataclass(frozen=True, slots=True)
class Broker:
    """The broker of the settings; ``password`` is shown to nobody else."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the one that the settings name."""
        parts = urlsplit(settings.mqtt_url or "")
        tls = parts.scheme == "mqtts"
        user, password = settings.mqtt_username, settings.mqtt_password
        return cls(
            host=parts.hostname or "",
            port=parts.port or (8883 if tls else 1883),
            tls=tls,
            username=None if user is None else user.get_secret_value(),
            password=None if password is None else password.get_secret_value(),
            ca_file=settings.mqtt_ca_file,
            cert_file=settings.mqtt_cert_file,
            key_file=settings.mqtt_key_file,
        )

    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    def context(self) -> ssl.SSLContext | None:
        """Read the certificates, anew for each connection: they are renewed while a daemon runs.

        Raises:
            ConfigError: one of the files cannot be read, or is something else.

        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"PROCESSOR_MQTT_CA_FILE: {self.ca_file}: {_said(error)}") from error
        if self.cert_file is not None:
            try:
                context.load_cert_chain(self.cert_file, self.key_file)
            except (OSError, ssl.SSLError) as error:
                files = f"{self.cert_file}, {self.key_file or 'no key file'}"
                raise ConfigError(
                    f"PROCESSOR_MQTT_CERT_FILE and PROCESSOR_MQTT_KEY_FILE: {files}: {_said(error)}"
                ) from error
        return context


def speaks_another_version(error: MqttError) -> bool:
    """Whether the broker refused the protocol's version, and nothing else."""
    return _code(error) in _BAD_VERSION


def mend(error: Exception, broker: Broker) -> str:
    """Say what to do about a connection that did not come about."""
    text = str(error).lower()
    rules: tuple[tuple[Callable[[], bool], str], ...] = (
        (
            lambda: isinstance(error, MqttError) and _code(error) in _NOT_LET_IN,
            "The broker does not let "
            + (
                "anonymous clients"
                if broker.username is None
                else f"user {broker.username!r} with this password"
            )
            + " in: check PROCESSOR_MQTT_USERNAME and PROCESSOR_MQTT_PASSWORD (or …_FILE), or its ACL.",
        ),
        (
            lambda: "certificate_verify_failed" in text,
            _certificate(text, broker),
        ),
        (
            lambda: "certificate required" in text or "handshake failure" in text,
            "The broker wants a client certificate: PROCESSOR_MQTT_CERT_FILE and PROCESSOR_MQTT_KEY_FILE.",
        ),
        (
            lambda: "wrong_version_number" in text or "record layer failure" in text,
            f"Port {broker.port} does not speak TLS: write mqtt:// in PROCESSOR_MQTT_URL, or take another.",
        ),
        (
            lambda: "refused" in text or "errno 111" in text,
            f"Nobody listens at {broker.host}:{broker.port}: is the broker running? See PROCESSOR_MQTT_URL.",
        ),
        (
            lambda: "name or service" in text or "getaddrinfo" in text or "name resolution" in text,
            f"There is no host {broker.host}: check PROCESSOR_MQTT_URL.",
        ),
        (
            lambda: "timed out" in text and not broker.tls,
            f"Does {broker.host}:{broker.port} expect TLS? Then write mqtts:// in PROCESSOR_MQTT_URL.",
        ),
    )
    return next((hint for applies, hint in rules if applies()), "Jobs run on; what is to be told waits.")


def _certificate(text: str, broker: Broker) -> str:
    if "mismatch" in text or "not valid for" in text:
        return f"The broker's certificate is not for {broker.host}: use its name in PROCESSOR_MQTT_URL."
    if "expired" in text:
        return "The broker's certificate has expired."
    trusted = "the system's authorities" if broker.ca_file is None else str(broker.ca_file)
    return (
        f"The broker's certificate is not signed by {trusted}: name its authority in PROCESSOR_MQTT_CA_FILE."
    )


def _code(error: MqttError) -> int | None:
    if not isinstance(error, MqttCodeError):
        return None
    return error.rc.value if isinstance(error.rc, ReasonCode) else error.rc


def _said(error: OSError) -> str:
    return error.strerror or str(error)
