"""Sign-in against the local stack: GoTrue's answers, and the official client as it is."""

import asyncio
import time
from uuid import uuid4

import httpx
import jwt
import pytest
from supabase import AsyncClient, AsyncClientOptions, create_async_client
from supabase_auth.errors import AuthApiError, AuthWeakPasswordError


@pytest.fixture
async def auth(stack):
    """Ask Auth directly, with the anonymous key."""
    async with httpx.AsyncClient(
        base_url=f"{stack.url}/auth/v1", headers={"apikey": stack.anon_key}, trust_env=False
    ) as client:
        yield client


@pytest.fixture
async def supabase(stack):
    """Be an application: the official client with the anonymous key."""
    async with httpx.AsyncClient(trust_env=False) as http:
        yield await official_client(stack.url, stack.anon_key, http)


@pytest.fixture
async def trusted(stack):
    """Be a trusted server: the official client with the service key."""
    async with httpx.AsyncClient(trust_env=False) as http:
        yield await official_client(stack.url, stack.service_role_key, http)


async def official_client(url: str, key: str, http: httpx.AsyncClient) -> AsyncClient:
    # the client cannot be closed, so what it would leave open is given to it
    return await create_async_client(
        url, key, AsyncClientOptions(httpx_client=http, auto_refresh_token=False)
    )


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def credentials() -> dict[str, str]:
    return {"email": f"{uuid4().hex}@example.com", "password": uuid4().hex}


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert body["code"] == answer.status_code
    assert body["msg"]
    return answer.status_code, body["error_code"]


async def password_grant(auth, email: str, password: str) -> httpx.Response:
    return await auth.post(
        "/token", params={"grant_type": "password"}, json={"email": email, "password": password}
    )


async def refresh_grant(auth, token: str) -> httpx.Response:
    return await auth.post("/token", params={"grant_type": "refresh_token"}, json={"refresh_token": token})


async def test_the_official_client_signs_up_in_refreshes_and_out(supabase):
    who = credentials()
    signed_up = await supabase.auth.sign_up({**who, "options": {"data": {"name": "Ada"}}})
    assert signed_up.user.email == who["email"]
    assert signed_up.user.user_metadata == {"name": "Ada"}
    assert signed_up.session.expires_in == 3600
    signed_in = await supabase.auth.sign_in_with_password(who)
    assert signed_in.user.id == signed_up.user.id
    refreshed = await supabase.auth.refresh_session()
    assert refreshed.session.refresh_token != signed_in.session.refresh_token
    assert (await supabase.auth.get_user()).user.id == signed_up.user.id
    updated = await supabase.auth.update_user({"data": {"name": "Grace"}})
    assert updated.user.user_metadata == {"name": "Grace"}
    await supabase.auth.sign_out()
    assert await supabase.auth.get_session() is None


async def test_the_official_client_tells_what_was_refused(supabase):
    who = credentials()
    await supabase.auth.sign_up(who)
    with pytest.raises(AuthApiError) as caught:
        await supabase.auth.sign_up(who)
    assert (caught.value.status, caught.value.code) == (422, "user_already_exists")
    with pytest.raises(AuthApiError) as caught:
        await supabase.auth.sign_in_with_password(who | {"password": "another"})
    assert (caught.value.status, caught.value.code) == (400, "invalid_credentials")
    with pytest.raises(AuthWeakPasswordError) as weak:
        await supabase.auth.sign_up(credentials() | {"password": "short"})
    assert weak.value.reasons == ["length"]


async def test_an_access_token_says_who_when_and_which_session(stack, new_user):
    user = await new_user()
    claims = jwt.decode(user.access_token, stack.jwt_secret, algorithms=["HS256"], audience="authenticated")
    assert claims["sub"] == user.id
    assert claims["role"] == "authenticated"
    assert claims["email"] == user.email
    assert claims["session_id"]
    assert claims["iss"] == f"{stack.url}/auth/v1"
    assert claims["exp"] - claims["iat"] == 3600
    assert abs(claims["iat"] - time.time()) < 60


async def test_row_level_security_knows_the_signed_in_user(new_user, admin):
    table = f"notes_{uuid4().hex}"
    await admin.execute(f"""
        create table public.{table} (id int primary key, owner_id uuid default auth.uid());
        alter table public.{table} enable row level security;
        create policy own on public.{table} using (owner_id = auth.uid());
        grant select, insert on public.{table} to authenticated;
        notify pgrst, 'reload schema';
    """)
    try:
        ada, bob = await new_user(), await new_user()
        await ada.rest.table(table).insert({"id": 1}).execute()
        assert (await ada.rest.table(table).select("*").execute()).data == [{"id": 1, "owner_id": ada.id}]
        assert (await bob.rest.table(table).select("*").execute()).data == []
    finally:
        await admin.execute(f"drop table public.{table}")


async def test_addresses_are_compared_without_case(auth):
    who = credentials()
    await auth.post("/signup", json=who | {"email": who["email"].upper()})
    answer = await password_grant(auth, who["email"].title(), who["password"])
    assert answer.json()["user"]["email"] == who["email"]


async def test_an_unknown_address_and_a_wrong_password_look_the_same(auth, new_user):
    user = await new_user()
    wrong = await password_grant(auth, user.email, "not-the-password")
    unknown = await password_grant(auth, "nobody@example.com", "not-the-password")
    assert refusal(wrong) == (400, "invalid_credentials")
    assert wrong.json() == unknown.json()


async def test_of_two_sign_ups_at_once_one_wins(auth):
    who = credentials()
    answers = await asyncio.gather(*(auth.post("/signup", json=who) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 422, 422, 422, 422]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"email": "no-address", "password": "long enough"}, (400, "validation_failed")),
        ({"email": 7, "password": "long enough"}, (400, "validation_failed")),
        ({"email": "a@example.com"}, (400, "validation_failed")),
        ({"email": "a@example.com", "password": "x" * 73}, (400, "validation_failed")),
        ({"email": "a@example.com", "password": "long enough", "data": []}, (400, "validation_failed")),
        ({"email": "a@example.com", "password": "12345"}, (422, "weak_password")),
        ({"phone": "+49", "password": "long enough"}, (400, "phone_provider_disabled")),
        ([], (400, "bad_json")),
    ],
)
async def test_a_bad_sign_up_is_refused(auth, body, expected):
    assert refusal(await auth.post("/signup", json=body)) == expected


async def test_a_body_that_is_no_json_is_refused(auth):
    assert refusal(await auth.post("/signup", content=b"{nonsense")) == (400, "bad_json")


async def test_an_unknown_grant_is_refused(auth):
    answer = await auth.post("/token", params={"grant_type": "magic"}, json={})
    assert refusal(answer) == (400, "unsupported_grant_type")


async def test_a_refresh_token_works_once_and_its_reuse_ends_the_session(auth, new_user):
    user = await new_user()
    second = (await refresh_grant(auth, user.refresh_token)).json()
    assert second["user"]["id"] == user.id
    for _ in range(2):
        reused = await refresh_grant(auth, user.refresh_token)
        assert refusal(reused) == (400, "refresh_token_already_used")
    # whoever reused it may be a thief: the token that replaced it is worth nothing either
    assert (await refresh_grant(auth, second["refresh_token"])).status_code == 400


async def test_of_two_refreshes_at_once_one_wins(auth, new_user):
    user = await new_user()
    answers = await asyncio.gather(*(refresh_grant(auth, user.refresh_token) for _ in range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 400]


@pytest.mark.parametrize("token", ["unknown", "", None, 7])
async def test_a_refresh_token_that_is_none_is_refused(auth, token):
    status, code = refusal(await refresh_grant(auth, token))
    assert status == 400
    assert code == ("refresh_token_not_found" if token == "unknown" else "validation_failed")


async def test_the_user_endpoint_wants_a_users_token(stack, auth, new_user):
    user = await new_user()
    answer = await auth.get("/user", headers=bearer(user.access_token))
    assert answer.json()["id"] == user.id
    assert answer.json()["identities"][0]["provider"] == "email"
    assert refusal(await auth.get("/user")) == (401, "no_authorization")
    assert refusal(await auth.get("/user", headers=bearer(stack.anon_key))) == (403, "bad_jwt")
    assert refusal(await auth.get("/user", headers=bearer("nonsense"))) == (403, "bad_jwt")
    claims = {"role": "authenticated", "sub": user.id}
    expired = jwt.encode(claims | {"exp": int(time.time()) - 1}, stack.jwt_secret)
    assert refusal(await auth.get("/user", headers=bearer(expired))) == (403, "bad_jwt")
    forged = jwt.encode(claims, "another-secret-of-at-least-32-characters")
    assert refusal(await auth.get("/user", headers=bearer(forged))) == (403, "bad_jwt")
    nobody = jwt.encode(claims | {"sub": str(uuid4())}, stack.jwt_secret)
    assert refusal(await auth.get("/user", headers=bearer(nobody))) == (403, "user_not_found")


async def test_metadata_is_merged_and_null_removes_a_key(auth, new_user):
    user = await new_user()
    headers = bearer(user.access_token)
    await auth.put("/user", headers=headers, json={"data": {"name": "Ada", "theme": {"dark": None}}})
    answer = await auth.put("/user", headers=headers, json={"data": {"name": None, "age": 36}})
    assert answer.json()["user_metadata"] == {"age": 36, "theme": {"dark": None}}


async def test_a_user_cannot_make_itself_more_than_a_user(auth, new_user):
    user = await new_user()
    body = {"app_metadata": {"admin": True}, "role": "service_role", "data": {}}
    answer = await auth.put("/user", headers=bearer(user.access_token), json=body)
    assert answer.json()["role"] == "authenticated"
    assert "admin" not in answer.json()["app_metadata"]


async def test_a_new_password_replaces_the_old_one(auth, new_user):
    user = await new_user()
    answer = await auth.put("/user", headers=bearer(user.access_token), json={"password": "a new one"})
    assert answer.status_code == 200
    assert (await password_grant(auth, user.email, user.password)).status_code == 400
    assert (await password_grant(auth, user.email, "a new one")).status_code == 200


async def test_the_address_of_another_user_is_refused(auth, new_user):
    ada, bob = await new_user(), await new_user()
    answer = await auth.put("/user", headers=bearer(ada.access_token), json={"email": bob.email})
    assert refusal(answer) == (422, "email_exists")


async def test_signing_out_ends_the_session(auth, new_user):
    user = await new_user()
    other = (await password_grant(auth, user.email, user.password)).json()
    headers = bearer(user.access_token)
    answer = await auth.post("/logout", params={"scope": "local"}, headers=headers)
    assert (answer.status_code, answer.content) == (204, b"")
    assert refusal(await auth.get("/user", headers=headers)) == (403, "session_not_found")
    assert (await refresh_grant(auth, user.refresh_token)).status_code == 400
    assert (await auth.get("/user", headers=bearer(other["access_token"]))).status_code == 200


async def test_signing_out_everywhere_ends_all_sessions_or_all_others(auth, new_user):
    user = await new_user()
    one, two, three = [(await password_grant(auth, user.email, user.password)).json() for _ in range(3)]
    await auth.post("/logout", params={"scope": "others"}, headers=bearer(one["access_token"]))
    assert (await auth.get("/user", headers=bearer(one["access_token"]))).status_code == 200
    assert (await auth.get("/user", headers=bearer(two["access_token"]))).status_code == 403
    await auth.post("/logout", headers=bearer(one["access_token"]))
    for session in (one, two, three):
        assert (await refresh_grant(auth, session["refresh_token"])).status_code == 400


async def test_an_anonymous_user_becomes_a_named_one(stack, supabase, auth):
    anonymous = await supabase.auth.sign_in_anonymously()
    assert anonymous.user.is_anonymous
    claims = jwt.decode(
        anonymous.session.access_token, stack.jwt_secret, algorithms=["HS256"], audience="authenticated"
    )
    assert claims["is_anonymous"] is True
    who = credentials()
    named = await supabase.auth.update_user(who)
    assert not named.user.is_anonymous
    assert (await password_grant(auth, **who)).json()["user"]["id"] == anonymous.user.id


async def test_the_administrator_makes_finds_changes_and_removes_users(trusted, auth):
    who = credentials()
    made = await trusted.auth.admin.create_user(
        {**who, "email_confirm": True, "user_metadata": {"a": 1}, "app_metadata": {"plan": "pro"}}
    )
    user_id = made.user.id
    assert made.user.app_metadata["plan"] == "pro"
    assert user_id in [user.id for user in await trusted.auth.admin.list_users(page=1, per_page=1000)]
    assert (await trusted.auth.admin.get_user_by_id(user_id)).user.email == who["email"]
    await trusted.auth.admin.update_user_by_id(user_id, {"user_metadata": {"b": 2}})
    assert (await trusted.auth.admin.get_user_by_id(user_id)).user.user_metadata == {"a": 1, "b": 2}
    with pytest.raises(AuthApiError) as caught:
        await trusted.auth.admin.create_user(who)
    assert (caught.value.status, caught.value.code) == (422, "email_exists")
    assert (await password_grant(auth, **who)).status_code == 200
    await trusted.auth.admin.delete_user(user_id)
    with pytest.raises(AuthApiError) as caught:
        await trusted.auth.admin.get_user_by_id(user_id)
    assert (caught.value.status, caught.value.code) == (404, "user_not_found")


async def test_users_are_listed_in_pages(stack, auth, new_user):
    for _ in range(3):
        await new_user()
    headers = bearer(stack.service_role_key)
    pages = [
        await auth.get("/admin/users", params={"page": page, "per_page": 2}, headers=headers)
        for page in (1, 2)
    ]
    ids = [user["id"] for page in pages for user in page.json()["users"]]
    assert len(set(ids)) == len(ids) >= 3
    assert int(pages[0].headers["x-total-count"]) >= 3


async def test_only_the_administrator_administers(stack, auth, new_user):
    user = await new_user()
    for token in (user.access_token, stack.anon_key):
        assert refusal(await auth.get("/admin/users", headers=bearer(token))) == (403, "not_admin")
        created = await auth.post("/admin/users", headers=bearer(token), json=credentials())
        assert refusal(created) == (403, "not_admin")
        deleted = await auth.delete(f"/admin/users/{user.id}", headers=bearer(token))
        assert refusal(deleted) == (403, "not_admin")
    assert refusal(await auth.get("/admin/users")) == (401, "no_authorization")


async def test_passwords_are_kept_as_salted_hashes(new_user, admin):
    user = await new_user()
    stored = await admin.fetchval("select encrypted_password from auth.users where id = $1", user.id)
    assert stored.startswith("scrypt$")
    assert user.password not in stored


async def test_the_api_roles_cannot_read_the_users(new_user, admin):
    await new_user()
    for role in ("anon", "authenticated", "service_role", "authenticator"):
        for table in ("users", "sessions", "refresh_tokens"):
            assert not await admin.fetchval(
                "select has_table_privilege($1, $2, 'select, insert, update, delete')", role, f"auth.{table}"
            )


async def test_health_and_settings_answer(auth):
    assert (await auth.get("/health")).json()["name"] == "GoTrue"
    assert (await auth.get("/settings")).json()["mailer_autoconfirm"] is True
