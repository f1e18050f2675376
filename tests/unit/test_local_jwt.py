"""Tokens of the local project: signed, verified, remembered, and refused with PostgREST's codes."""

import json
import time

import jwt as pyjwt
import pytest

from processor.local.jwt import CACHED_TOKENS, Jwt, JwtError

SECRET = "a-secret-of-at-least-32-characters-for-hs256"


@pytest.fixture
def jwt() -> Jwt:
    return Jwt(SECRET)


def refusal(jwt: Jwt, token: str) -> JwtError:
    with pytest.raises(JwtError) as caught:
        jwt.verify(token)
    return caught.value


def in_seconds(seconds: float) -> int:
    return int(time.time() + seconds)


def test_a_signed_token_verifies_to_its_claims(jwt):
    raw = {"role": "authenticated", "sub": "8b0c", "exp": in_seconds(60), "app": {"plan": "ä"}}
    claims = jwt.verify(jwt.sign(raw))
    assert (claims.role, claims.sub, claims.exp) == ("authenticated", "8b0c", raw["exp"])
    assert claims.raw == raw
    assert json.loads(claims.json) == raw


def test_a_token_without_expiry_or_subject_is_accepted(jwt):
    claims = jwt.verify(jwt.sign({"role": "anon"}))
    assert (claims.sub, claims.exp) == (None, None)


def test_any_audience_is_accepted(jwt):
    assert jwt.verify(jwt.sign({"role": "authenticated", "aud": "authenticated"})).role == "authenticated"


def test_a_token_of_another_secret_is_refused(jwt):
    other = Jwt("another-secret-of-at-least-32-characters-long")
    assert refusal(jwt, other.sign({"role": "service_role"})).code == "PGRST301"


def test_an_unsigned_token_is_refused(jwt):
    unsigned = pyjwt.encode({"role": "service_role"}, "", algorithm="none")
    assert refusal(jwt, unsigned).code == "PGRST301"


def test_a_token_whose_claims_were_changed_is_refused(jwt):
    head, _, signature = jwt.sign({"role": "anon"}).split(".")
    _, claims, _ = jwt.sign({"role": "service_role"}).split(".")
    assert refusal(jwt, f"{head}.{claims}.{signature}").code == "PGRST301"


def test_an_expired_token_is_refused(jwt):
    error = refusal(jwt, jwt.sign({"role": "anon", "exp": in_seconds(-1)}))
    assert (error.code, error.message) == ("PGRST303", "JWT expired")


def test_a_remembered_token_expires_on_time(jwt):
    expires = in_seconds(2)
    token = jwt.sign({"role": "anon", "exp": expires})
    jwt.verify(token)
    while time.time() < expires - 0.1:
        jwt.verify(token)
        time.sleep(0.01)
    time.sleep(max(0.0, expires - time.time()))
    assert refusal(jwt, token).message == "JWT expired"


def test_a_token_for_later_is_refused(jwt):
    error = refusal(jwt, jwt.sign({"role": "anon", "nbf": in_seconds(60)}))
    assert (error.code, error.message) == ("PGRST303", "JWT not yet valid")


@pytest.mark.parametrize("claims", [{}, {"role": ""}, {"role": 7}])
def test_a_token_without_a_role_is_refused(jwt, claims):
    assert refusal(jwt, jwt.sign(claims)).code == "PGRST303"


@pytest.mark.parametrize("token", ["", "x", "a.b", "a.b.c", "a.b.c.d", "ä.ö.ü"])
def test_what_is_no_token_is_refused(jwt, token):
    assert refusal(jwt, token).code == "PGRST301"


def test_only_so_many_tokens_are_remembered_and_the_newest_are(jwt):
    tokens = [jwt.sign({"role": "anon", "n": n}) for n in range(CACHED_TOKENS + 10)]
    for token in tokens:
        jwt.verify(token)
    assert list(jwt._verified) == tokens[10:]


def test_a_refused_token_is_not_remembered(jwt):
    refusal(jwt, jwt.sign({"role": "anon", "exp": in_seconds(-1)}))
    assert not jwt._verified
