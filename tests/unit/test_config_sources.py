"""Where settings may stand, which place wins, and what is said of names that nobody can have meant."""

import os
from pathlib import Path

import pytest

from processor.config import KEY_VARIABLES, Settings, load, variables
from processor.errors import ConfigError

KEY = "sb_secret_1234567890"
OTHER = "sb_secret_abcdefghij"
BASE = {"SUPABASE_URL": "https://abcdefgh.supabase.co"}
WITH_KEY = BASE | {"SUPABASE_SERVICE_ROLE_KEY": KEY}


def secret(path: Path, text: str = KEY, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def toml(directory: Path, text: str) -> Path:
    return secret(directory / "processor.toml", text)


def complaint(environment: dict[str, str], **more) -> str:
    with pytest.raises(ConfigError) as caught:
        load(environment=environment, **more)
    return str(caught.value)


@pytest.fixture
def open_directory(tmp_path: Path) -> Path:
    """Give a directory that everybody can reach, or skip where there is none."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.getuid():
            directory.chmod(directory.stat().st_mode | 0o055)
    if not all(parent.stat().st_mode & 0o001 for parent in (tmp_path, *tmp_path.parents)):
        pytest.skip("the directory for temporary files is closed to others")
    return tmp_path


def test_the_command_line_wins_over_a_variable_which_wins_over_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "slots = 7\nlog_level = 'error'\ngrace_seconds = 1.5\n")
    environment = WITH_KEY | {"PROCESSOR_SLOTS": "5", "PROCESSOR_LOG_LEVEL": "debug"}
    settings = load(environment=environment, config=file, slots=4)
    assert (settings.slots, settings.log_level, settings.grace_seconds) == (4, "debug", 1.5)
    origins = {name: str(settings.origin(name)) for name in ("slots", "log_level", "grace_seconds", "name")}
    assert origins == {
        "slots": "command line --slots",
        "log_level": "variable PROCESSOR_LOG_LEVEL",
        "grace_seconds": f"config file {file}:grace_seconds",
        "name": "default",
    }


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = toml(tmp_path, f"url = 'http://127.0.0.1:54321'\nkey = '{KEY}'\nqueues = ['mail', 'books']\n")
    settings = load(environment={"PROCESSOR_CONFIG": str(file)})
    assert (settings.url, settings.queues) == ("http://127.0.0.1:54321", ("mail", "books"))
    assert settings.warnings == ()


@pytest.mark.parametrize("variable", KEY_VARIABLES)
def test_a_key_may_come_from_a_file(tmp_path: Path, variable: str) -> None:
    path = secret(tmp_path / "key", f"{KEY}\n")
    settings = load(environment=BASE | {f"{variable}_FILE": str(path)})
    assert settings.key.get_secret_value() == KEY
    assert str(settings.origin("key")) == f"file {path}"


@pytest.mark.parametrize(
    "name",
    ["SUPABASE_SERVICE_ROLE_KEY", "supabase_service_role_key", "supabase-service-role-key", "SUPABASE.KEY"],
)
def test_a_key_may_be_a_systemd_credential_however_its_name_is_written(tmp_path: Path, name: str) -> None:
    secret(tmp_path / name)
    secret(tmp_path / "other-credential", "of somebody else")
    settings = load(environment=BASE | {"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings.key.get_secret_value() == KEY
    assert settings.origin("key").kind == "credential"


def test_the_file_may_name_a_file_with_the_key_beside_it(tmp_path: Path) -> None:
    secret(tmp_path / "the.key")
    file = toml(tmp_path, "key_file = 'the.key'")
    settings = load(environment=BASE, config=file)
    assert settings.key.get_secret_value() == KEY
    assert settings.origin("key").name == str(tmp_path / "the.key")


def test_a_key_in_a_file_is_read_again_when_asked_for(tmp_path: Path) -> None:
    path = secret(tmp_path / "key")
    settings = load(environment=BASE | {"SUPABASE_KEY_FILE": str(path)})
    secret(path, OTHER)
    assert settings.read_key() == OTHER
    assert settings.key.get_secret_value() == KEY
    secret(path, "sb_publishable_x")
    with pytest.raises(ConfigError, match="public key"):
        settings.read_key()
    path.unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        settings.read_key()


def test_every_other_secret_may_come_from_a_file_too(tmp_path: Path) -> None:
    dsn = secret(tmp_path / "dsn", "https://abcdefgh@sentry.example/1\n")
    settings = load(environment=WITH_KEY | {"PROCESSOR_SENTRY_DSN_FILE": str(dsn)})
    assert settings.sentry_dsn is not None
    assert settings.sentry_dsn.get_secret_value() == "https://abcdefgh@sentry.example/1"
    assert settings.sentry_dsn.get_secret_value() in settings.secrets
    assert "PROCESSOR_SLOTS_FILE: there is no such setting" in complaint(
        WITH_KEY | {"PROCESSOR_SLOTS_FILE": str(dsn)}
    )


def test_a_key_given_as_a_variable_is_what_it_is() -> None:
    assert load(environment=WITH_KEY).read_key() == KEY
    assert Settings(url="http://127.0.0.1:9", key=KEY).read_key() == KEY


def test_of_two_keys_the_variable_counts_and_the_other_is_named_but_not_shown(tmp_path: Path) -> None:
    path = secret(tmp_path / "key", OTHER)
    settings = load(environment=WITH_KEY | {"SUPABASE_SERVICE_ROLE_KEY_FILE": str(path)})
    assert settings.key.get_secret_value() == KEY
    [warning] = settings.warnings
    assert "given twice: variable SUPABASE_SERVICE_ROLE_KEY counts" in warning
    assert str(path) in warning
    assert KEY not in warning
    assert OTHER not in warning


def test_the_same_key_under_two_names_is_no_matter() -> None:
    assert load(environment=WITH_KEY | {"SUPABASE_KEY": KEY}).warnings == ()
    [warning] = load(environment=WITH_KEY | {"SUPABASE_KEY": OTHER}).warnings
    assert "variable SUPABASE_KEY does not" in warning


def test_a_file_with_a_key_that_everybody_can_read_is_warned_of(open_directory: Path) -> None:
    path = secret(open_directory / "key", mode=0o644)
    [warning] = load(environment=BASE | {"SUPABASE_KEY_FILE": str(path)}).warnings
    assert f"chmod o-r {path}" in warning
    file = toml(open_directory, f"key = '{KEY}'")
    file.chmod(0o604)
    assert "everybody" in load(environment=BASE, config=file).warnings[0]
    open_directory.chmod(0o700)  # then nobody gets at it
    assert load(environment=BASE, config=file).warnings == ()


def test_a_misspelt_variable_is_an_error_that_names_the_right_one() -> None:
    said = complaint(WITH_KEY | {"PROCESSOR_SLOT": "5", "PROCESSOR_COLOUR": "blue"})
    assert "PROCESSOR_SLOT: there is no such setting. Did you mean 'PROCESSOR_SLOTS'?" in said
    assert "PROCESSOR_COLOUR: there is no such setting.\n" in said + "\n"


def test_what_windows_says_of_its_processor_is_no_setting() -> None:
    words = ("ARCHITECTURE", "IDENTIFIER", "LEVEL", "REVISION")
    assert load(environment=WITH_KEY | {f"PROCESSOR_{word}": "x" for word in words}).slots == 3


def test_a_key_under_nearly_its_name_is_found_and_not_shown() -> None:
    said = complaint(BASE | {"SUPABASE_SERVICE_KEY": KEY})
    assert (
        "SUPABASE_SERVICE_ROLE_KEY: is not set. (SUPABASE_SERVICE_KEY is set, but that is not its name.)"
        in said
    )
    assert KEY not in said
    assert "not its name" not in complaint(BASE | {"SUPABASE_ANON_KEY": KEY})
    assert "(SUPABASE_PROJECT_URL is set" in complaint({"SUPABASE_PROJECT_URL": "x", "SUPABASE_KEY": KEY})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slot = 5", "slot: there is no such setting. Did you mean 'slots'?"),
        ("PROCESSOR_SLOTS = 5", "PROCESSOR_SLOTS: there is no such setting. Did you mean 'slots'?"),
        ("SUPABASE_URL = 'x'", "Did you mean 'url'?"),
        ("[processor]\nslots = 5", "processor: there is no such setting."),
        ("key_file = 5", "key_file: must be a path, not 5"),
        ("slots = ", "this is no TOML"),
        ("slots = 0", "greater than or equal to 1"),
        ("slots = 'many'", "processor.toml:slots): Input should be a valid integer"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    assert says in complaint(WITH_KEY, config=toml(tmp_path, text))


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("PROCESSOR_CONFIG", "PROCESSOR_CONFIG: cannot read"),
        ("SUPABASE_KEY_FILE", "SUPABASE_KEY_FILE: cannot read"),
        ("CREDENTIALS_DIRECTORY", "CREDENTIALS_DIRECTORY: cannot read"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, variable: str, says: str) -> None:
    missing = str(tmp_path / "missing")
    said = complaint(WITH_KEY | {variable: missing})
    assert f"{says} {missing}: No such file or directory" in said


def test_an_empty_file_is_no_key(tmp_path: Path) -> None:
    path = secret(tmp_path / "key", "\n")
    assert f"{path} is empty" in complaint(BASE | {"SUPABASE_KEY_FILE": str(path)})


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    file = toml(tmp_path, "slot = 5")
    said = complaint({"PROCESSOR_SLOTS": "0", "PROCESSOR_FEEDS": "x"}, config=file)
    for words in (
        "SUPABASE_URL",
        "SUPABASE_SERVICE_ROLE_KEY",
        "PROCESSOR_SLOTS:",
        "PROCESSOR_FEEDS:",
        "slot:",
    ):
        assert words in said


def test_variables_may_be_written_in_any_case_and_empty_ones_are_not_set() -> None:
    settings = load(environment=WITH_KEY | {"processor_slots": "8", "PROCESSOR_NAME": " "})
    assert settings.slots == 8
    assert settings.origin("name").kind == "default"


def test_an_address_with_a_password_in_it_is_refused_without_showing_it() -> None:
    said = complaint({"SUPABASE_URL": "https://user:hunter2@abc.supabase.co", "SUPABASE_KEY": KEY})
    assert "must hold no user and no password" in said
    assert "hunter2" not in said


def test_every_setting_is_in_the_table_of_the_readme() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name in Settings.model_fields:
        assert any(f"`{variables(name)[0]}`" in row for row in rows), variables(name)[0]
