"""How settings name an MQTT broker, and what of them belongs together."""

from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit


class BrokerSettings(Protocol):
    """What is said of the broker."""

    @property
    def mqtt_url(self) -> str | None: ...
    @property
    def mqtt_username(self) -> object | None: ...
    @property
    def mqtt_password(self) -> object | None: ...
    @property
    def mqtt_ca_file(self) -> Path | None: ...
    @property
    def mqtt_cert_file(self) -> Path | None: ...
    @property
    def mqtt_key_file(self) -> Path | None: ...


def broker(value: Any) -> Any:
    """Take a broker's address; who may in has settings of its own."""
    if not isinstance(value, str):
        return value
    parts = urlsplit(value.strip())
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"{value!r} must look like mqtts://broker.example.com or mqtt://127.0.0.1:1883")
    if "@" in parts.netloc:
        raise ValueError(
            "must hold no user and no password: PROCESSOR_MQTT_USERNAME and PROCESSOR_MQTT_PASSWORD"
        )
    if not _has_port(value.strip()):
        raise ValueError(f"{value!r}: the port must be a number from 1 to 65535")
    return f"{parts.scheme}://{parts.netloc}"


def _has_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0  # None: the usual one
    except ValueError:
        return False


def topic_prefix(value: Any) -> Any:
    """Take the beginning of topics, which has no wildcards in it."""
    if not isinstance(value, str):
        return value
    levels = value.strip().strip("/").split("/")
    if any(not level or set(level) & set("+#$\0 ") for level in levels):
        raise ValueError(f"{value!r} must be words with / between them, without spaces and + # $")
    return "/".join(levels)


def check_broker(settings: BrokerSettings) -> None:
    """Refuse settings that contradict each other; raises ``ValueError``."""
    files = (
        ("CA", settings.mqtt_ca_file),
        ("CERT", settings.mqtt_cert_file),
        ("KEY", settings.mqtt_key_file),
    )
    given = [f"PROCESSOR_MQTT_{name}_FILE" for name, file in files if file is not None]
    if given and (settings.mqtt_url or "").startswith("mqtt://"):
        raise ValueError(f"{given[0]}: is for TLS: write mqtts:// in PROCESSOR_MQTT_URL")
    if settings.mqtt_key_file is not None and settings.mqtt_cert_file is None:
        raise ValueError("PROCESSOR_MQTT_KEY_FILE: needs PROCESSOR_MQTT_CERT_FILE, whose key it is")
    if settings.mqtt_password is not None and settings.mqtt_username is None:
        raise ValueError("PROCESSOR_MQTT_PASSWORD: needs PROCESSOR_MQTT_USERNAME")
