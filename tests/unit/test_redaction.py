import json

import pytest

from processor.redact import redact, remember

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJlLXNpZ25hdHVyZQ"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {JWT} is over", "token [redacted] is over"),
        (f"cut in the middle: {JWT[:40]}", "cut in the middle: [redacted]"),
        ("key sb_secret_AbC-123_x refused", "key [redacted] refused"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer [redacted]"),
        ("sent 'bearer  abc.def-ghi_jkl'", "sent 'bearer  [redacted]'"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic [redacted]"),
        ("postgresql://bob:hunter2@db.test:5432/x", "postgresql://bob:[redacted]@db.test:5432/x"),
        ("postgresql://bob:p@ss@db.test/x", "postgresql://bob:[redacted]@db.test/x"),
        ("redis://:hunter2@cache", "redis://:[redacted]@cache"),
        ("GET https://a.test/v1?apikey=abc123def&x=1", "GET https://a.test/v1?apikey=[redacted]&x=1"),
        ("{'apikey': 'abc123def', 'accept': 'x'}", "{'apikey': '[redacted]', 'accept': 'x'}"),
        (r"{\"x-api-key\": \"abc123def\"}", r"{\"x-api-key\": \"[redacted]\"}"),
        ("[(b'apikey', b'abc123def')]", "[(b'apikey', b'[redacted]')]"),
        ("password=correct-horse", "password=[redacted]"),
        ("openai: sk-proj-abcdefghijklmnop1234", "openai: [redacted]"),
        ("AKIAABCDEFGHIJKLMNOP", "[redacted]"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw is old", "[redacted] is old"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://upstream.test:8080/v1/keys answered 404",
        "the task-manager-of-the-disk_full-department is full",
        "wrong password",
        "the key 'title' is missing; mail bob@example.com",
        "2026-11-22T10:00:00Z job 0193a2b4-0000-7000-8000-000000000000",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_known_secrets_are_hidden_in_urls_and_in_json_too() -> None:
    secret = 'open "sesame" / now'
    remember(secret, "short")
    assert redact(f"a {secret} b short") == "a [redacted] b short"
    assert redact("x?p=open%20%22sesame%22%20%2F%20now") == "x?p=[redacted]"
    assert redact(json.dumps({"p": secret})) == '{"p": "[redacted]"}'


def test_json_stays_json() -> None:
    line = json.dumps(
        {"exception": f'headers={{"apikey": "{JWT}"}}\nurl=postgres://a:b%22@c', "password": "x" * 9}
    )
    shown = json.loads(redact(line))
    assert shown["password"] == "[redacted]"
    assert JWT[:20] not in shown["exception"]
