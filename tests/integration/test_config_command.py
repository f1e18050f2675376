"""``processor config``: what it shows, what it hides, and how it looks."""

import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from processor.cli import app
from processor.cli.config import masked
from processor.config import Settings, variables

KEY = "sb_secret_abcdefghijklmnopqrstuvwxyz"


def command(*arguments: str, **environment: str) -> Result:
    strangers = {name: None for name in os.environ if name.startswith(("SUPABASE", "PROCESSOR"))}
    return CliRunner().invoke(
        app, ["config", *arguments], env={**strangers, "COLUMNS": "60", **environment}, catch_exceptions=False
    )


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "p.toml").write_text("slots = 8\ngrace_seconds = 0.5\n")
    return {
        "SUPABASE_URL": "https://abcdefgh.supabase.co",
        "SUPABASE_SERVICE_ROLE_KEY_FILE": str(tmp_path / "key"),
        "PROCESSOR_LOG_LEVEL": "debug",
        "PROCESSOR_CONFIG": str(tmp_path / "p.toml"),
    }


def test_json_has_every_setting_with_its_value_and_origin_and_no_key(environment, tmp_path) -> None:
    said = command("--json", **environment)
    assert said.exit_code == 0, said.stderr
    told = json.loads(said.stdout)
    assert set(told["settings"]) == set(Settings.model_fields)
    shown = {name: (s["value"], s["origin"], s["from"]) for name, s in told["settings"].items()}
    assert shown["key"] == ("…wxyz", "file", str(tmp_path / "key"))
    assert shown["slots"] == (8, "config file", f"{tmp_path / 'p.toml'}:slots")
    assert shown["log_level"] == ("debug", "variable", "PROCESSOR_LOG_LEVEL")
    assert shown["lease_seconds"] == (90, "default", None)
    assert told["warnings"] == []
    assert KEY not in said.stdout


def test_the_table_fits_a_narrow_terminal_and_breaks_no_name(environment) -> None:
    said = command(**environment)
    assert said.exit_code == 0, said.stderr
    lines = said.stdout.splitlines()
    assert max(map(len, lines)) <= 60
    for name in Settings.model_fields:
        assert [line for line in lines if line.startswith(variables(name)[0])], name
    assert "abcdefghij" not in said.stdout


def test_a_configuration_that_is_wrong_is_an_error(environment) -> None:
    said = command(**environment | {"PROCESSOR_SLOTZ": "1"})
    assert (said.exit_code, said.stdout) == (2, "")
    assert "Did you mean 'PROCESSOR_SLOTS'?" in said.stderr


def test_a_doubled_key_is_told_in_the_table_too(environment) -> None:
    said = command(**environment | {"SUPABASE_KEY": "sb_secret_0123456789", "COLUMNS": "200"})
    assert "! SUPABASE_SERVICE_ROLE_KEY is given twice" in said.stdout


@pytest.mark.parametrize(
    ("key", "shown"), [(KEY, "…wxyz"), ("sb_secret_1234567890", "…7890"), ("hunter2", "…")]
)
def test_of_a_key_the_last_four_characters_are_shown_if_it_is_long(key: str, shown: str) -> None:
    assert masked(key) == shown
