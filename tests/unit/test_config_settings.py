import base64
import json
import os
import re
from pathlib import Path

import pytest

from processor.config import ANON_VARIABLES, KEY_VARIABLES, Settings, load, role_of
from processor.errors import ConfigError


def jwt(**claims: str) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.signature"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("SUPABASE", "PROCESSOR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SUPABASE_URL", "https://abcdefgh.supabase.co")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "sb_secret_1234567890")
    return monkeypatch


def test_two_variables_are_enough() -> None:
    settings = load()
    assert settings.url == "https://abcdefgh.supabase.co"
    assert (settings.slots, settings.item_concurrency, settings.lease_seconds) == (3, 3, 90)


def test_every_missing_variable_is_named_with_what_it_is(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("SUPABASE_URL")
    environment.delenv("SUPABASE_SERVICE_ROLE_KEY")
    with pytest.raises(ConfigError) as caught:
        load()
    assert "SUPABASE_URL: is not set" in str(caught.value)
    assert "SUPABASE_SERVICE_ROLE_KEY: is not set" in str(caught.value)
    assert "API settings" in str(caught.value)


@pytest.mark.parametrize("name", KEY_VARIABLES)
def test_the_key_may_have_each_of_its_names(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.delenv("SUPABASE_SERVICE_ROLE_KEY")
    environment.setenv(name, "sb_secret_abcdefghij")
    assert load().key.get_secret_value() == "sb_secret_abcdefghij"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("SUPABASE_URL", "abcdefgh.supabase.co", "must look like https://"),
        ("SUPABASE_SERVICE_ROLE_KEY", "sb_publishable_123", "public key"),
        ("SUPABASE_SERVICE_ROLE_KEY", jwt(role="anon"), "public key"),
        ("PROCESSOR_SLOTS", "0", "greater than or equal to 1"),
        ("PROCESSOR_SLOTS", "many", "integer"),
        ("PROCESSOR_LEASE_SECONDS", "1", "greater than or equal to 3"),
        ("PROCESSOR_HTTP_PORT", "70000", "65535"),
        ("PROCESSOR_LOG_FORMAT", "xml", "'json'"),
        ("PROCESSOR_FEED", "carrier-pigeon", "'postgres_changes'"),
        ("PROCESSOR_FEED", "realtime", "now called 'postgres_changes'"),
        ("PROCESSOR_SPOOL_MAX_MB", "0", "greater than or equal to 1"),
        ("SUPABASE_ANON_KEY", "sb_secret_1234567890", "must reach no browser"),
        ("SUPABASE_ANON_KEY", jwt(role="service_role"), "must reach no browser"),
        ("PROCESSOR_PANEL", "true", "set PROCESSOR_HTTP_PORT"),
        ("PROCESSOR_HTTP_JOBS", "yes", "set PROCESSOR_HTTP_PORT"),
        ("PROCESSOR_HTTP_STREAMS", "0", "greater than or equal to 1"),
        ("PROCESSOR_CORS_ORIGINS", "https://a.example, app.example.com", "'app.example.com' must look like"),
        ("PROCESSOR_CORS_ORIGINS", "https://app.example.com/", "without a slash"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(
    environment: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    environment.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load()
    assert variable in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("value", "directory"),
    [
        ("/var/spool/jobs", Path("/var/spool/jobs")),
        ("spool", Path.cwd() / "spool"),
        ("~/spool", Path.home() / "spool"),
        ("none", None),
        ("", Path("/state/supabase-job-processor")),
    ],
)
def test_results_are_kept_in_a_directory_or_nowhere(
    environment: pytest.MonkeyPatch, value: str, directory: Path | None
) -> None:
    environment.delenv("STATE_DIRECTORY", raising=False)
    environment.setenv("XDG_STATE_HOME", "/state")
    environment.setenv("PROCESSOR_SPOOL_DIR", value)
    assert load().spool_dir == directory


def test_errors_never_show_a_key(environment: pytest.MonkeyPatch) -> None:
    key = jwt(role="anon", secret="hunter2")
    environment.setenv("SUPABASE_SERVICE_ROLE_KEY", key)
    with pytest.raises(ConfigError) as caught:
        load()
    assert key not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_url_copied_with_its_rest_path_or_slash_is_understood(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SUPABASE_URL", "http://127.0.0.1:54321/rest/v1/")
    assert load().url == "http://127.0.0.1:54321"


def test_queues_are_a_list_with_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PROCESSOR_QUEUES", "mail, translation,")
    assert load().queues == ("mail", "translation")
    assert load(queues=("other",)).queues == ("other",)


@pytest.mark.parametrize("variable", ["PROCESSOR_PANEL", "PROCESSOR_HTTP_JOBS"])
def test_what_browsers_use_needs_the_public_key(environment: pytest.MonkeyPatch, variable: str) -> None:
    environment.setenv(variable, "true")
    environment.setenv("PROCESSOR_HTTP_PORT", "8080")
    with pytest.raises(ConfigError, match=f"{variable}: needs SUPABASE_ANON_KEY"):
        load()
    environment.setenv("SUPABASE_ANON_KEY", jwt(role="anon"))
    settings = load()
    assert settings.panel or settings.http_jobs


def test_origins_are_a_list_with_commas(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("PROCESSOR_CORS_ORIGINS", "https://app.example.com, http://localhost:5173")
    assert load().cors_origins == ("https://app.example.com", "http://localhost:5173")
    environment.setenv("PROCESSOR_CORS_ORIGINS", "*")
    assert load().cors_origins == ("*",)


def test_a_token_of_a_lesser_role_travels_beside_the_publishable_key(environment: pytest.MonkeyPatch) -> None:
    token = jwt(role="job_processor")
    environment.setenv("SUPABASE_SERVICE_ROLE_KEY", token)
    assert load().api_key == token
    environment.setenv("SUPABASE_PUBLISHABLE_KEY", "sb_publishable_123")
    assert load().api_key == "sb_publishable_123"
    environment.setenv("SUPABASE_SERVICE_ROLE_KEY", jwt(role="service_role"))
    assert load().api_key == jwt(role="service_role")


@pytest.mark.parametrize("key", ["", "sb_secret_x", "a.b.c", "a.e30", "a.W10.c", "a.bnVsbA.c"])
def test_a_key_that_is_no_token_has_no_role(key: str) -> None:
    assert role_of(key) is None


def test_the_example_file_lists_exactly_the_variables_there_are() -> None:
    text = (Path(__file__).parents[2] / ".env.example").read_text()
    listed = set(re.findall(r"^#?\s?((?:SUPABASE|PROCESSOR)_[A-Z_]+)=", text, re.MULTILINE))
    own = {
        f"PROCESSOR_{name.upper()}"
        for name in Settings.model_fields
        if name not in {"url", "key", "anon_key"}
    }
    elsewhere = {"PROCESSOR_CONFIG", f"{KEY_VARIABLES[0]}_FILE"}
    assert listed == own | elsewhere | {"SUPABASE_URL", KEY_VARIABLES[0], ANON_VARIABLES[0]}


@pytest.mark.parametrize("around", ["\n", " ", "\r\n"])
def test_space_around_a_key_is_not_part_of_it(environment: pytest.MonkeyPatch, around: str) -> None:
    environment.setenv("SUPABASE_SERVICE_ROLE_KEY", f"{around}sb_secret_1234567890{around}")
    assert load().key.get_secret_value() == "sb_secret_1234567890"


@pytest.mark.parametrize("key", ["sb_secret_12 34", "sb_secret_\u2026", "sb_secret_\n12"])
def test_a_key_no_header_can_carry_is_refused_without_being_shown(
    environment: pytest.MonkeyPatch, key: str
) -> None:
    environment.setenv("SUPABASE_SERVICE_ROLE_KEY", key)
    with pytest.raises(ConfigError) as caught:
        load()
    assert "SUPABASE_SERVICE_ROLE_KEY" in str(caught.value)
    assert key not in str(caught.value)
