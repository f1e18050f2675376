"""How settings name an MQTT broker, and what of them belongs together."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


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


def check_broker(
    url: str | None,
    *,
    password_alone: bool,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
) -> None:
    """Refuse settings that contradict each other; raises ``ValueError``."""
    files = (("CA", ca_file), ("CERT", cert_file), ("KEY", key_file))
    given = [f"PROCESSOR_MQTT_{name}_FILE" for name, file in files if file is not None]
    if given and (url or "").startswith("mqtt://"):
        raise ValueError(f"{given[0]}: is for TLS: write mqtts:// in PROCESSOR_MQTT_URL")
    if key_file is not None and cert_file is None:
        raise ValueError("PROCESSOR_MQTT_KEY_FILE: needs PROCESSOR_MQTT_CERT_FILE, whose key it is")
    if password_alone:
        raise ValueError("PROCESSOR_MQTT_PASSWORD: needs PROCESSOR_MQTT_USERNAME")
