import re
from pathlib import Path

import pytest

from processor.errors import MEANINGS, SQLSTATES, ErrorCode, JobError, UsageError

ROOT = Path(__file__).parents[2]
SQL = "\n".join(path.read_text() for path in (ROOT / "sql").glob("*.sql"))


def test_every_sqlstate_that_the_sql_raises_has_an_error_class() -> None:
    raised = set(re.findall(r"'(JQ\d{3}|PT\d{3})'", SQL))
    assert len(raised) > 5
    assert raised <= SQLSTATES.keys()


def test_every_error_code_that_the_sql_writes_is_a_known_one() -> None:
    written = set(re.findall(r"'([A-Z]+_[A-Z_]+|CANCELLED)'", SQL))
    assert {"LEASE_LOST", "CANCELLED", "ITEMS_FAILED"} <= written
    assert written & {"WORKER_CRASHED"} <= set(ErrorCode)
    assert {"LEASE_LOST", "ITEMS_FAILED", "WORKER_CRASHED", "CANCELLED"} <= set(ErrorCode)


def test_no_two_sqlstates_share_a_class() -> None:
    assert len(set(SQLSTATES.values())) == len(SQLSTATES)


def test_a_job_error_takes_from_a_known_code_whether_to_retry() -> None:
    assert not JobError("x", code="AUTH_FAILED").retryable
    assert JobError("x", code="RATE_LIMITED").retryable
    assert JobError("x", code="SOMETHING_ELSE").retryable
    assert not JobError("x", code="RATE_LIMITED", retryable=False).retryable


@pytest.mark.parametrize("code", ["", "lower", "1X", "A-B", "X" * 65])
def test_a_job_error_with_an_odd_code_teaches_what_a_code_looks_like(code: str) -> None:
    with pytest.raises(UsageError, match="CARD_TOO_LONG"):
        JobError("x", code=code)


def test_every_code_is_explained_and_the_readme_has_the_table() -> None:
    assert list(MEANINGS) == list(ErrorCode)
    rows = [
        f"| `{code}` | {meaning.what} | {'yes' if meaning.retryable else 'no'} | {meaning.advice} |"
        for code, meaning in MEANINGS.items()
    ]
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| `error_code` |") :].partition("\n\n")[0].splitlines()
    assert table[2:] == rows
