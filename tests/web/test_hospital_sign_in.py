"""Sign-in with the hospital's own accounts: who gets in as what, and what is refused in words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

import ehr
from cds import environment, signing
from cds import settings as project
from cds.audit.models import AuditEvent
from cds.launch import accounts, discovering
from cds.launch.models import HospitalIdentity
from cds.patients import access
from cds.patients.models import Unit
from cds.registry.models import ModelVersion, Promotion
from tests.hospital_provider import CLIENT, SECRET, HospitalProvider, hmac_key, hospital_provider
from tests.web.clinic import Clinic

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def running() -> Iterator[HospitalProvider]:
    with hospital_provider() as one:
        yield one


@pytest.fixture
def provider(running: HospitalProvider, settings: Settings) -> HospitalProvider:
    running.claims, running.discovery, running.app_keys = {}, {}, None
    running.algorithm, running.signs_with, running.asked = "ES256", None, []
    settings.OIDC_ISSUER, settings.OIDC_CLIENT_ID, settings.OIDC_CLIENT_SECRET = running.url, CLIENT, SECRET
    settings.OIDC_CLIENT_AUTH, settings.OIDC_ALGORITHMS = "secret", ["ES256", "RS256"]
    settings.OIDC_ROLES = (("clinicians", "clinician"), ("admins", "admin"), ("approvers", "approver"))
    settings.OIDC_ROLE_CLAIM, settings.OIDC_UNIT_CLAIM, settings.OIDC_ORIGINS = "groups", "", []
    discovering.forget()
    return running


def go(client: Client, address: str = "/login/hospital") -> str:
    """To the provider and back; the address of the callback."""
    there = client.get(address)
    assert there.status_code == 302, there.content.decode()
    with httpx.Client(trust_env=False) as browser:
        back = urlsplit(browser.get(there["Location"]).headers["Location"])
    return f"{back.path}?{back.query}"


def sign_in(client: Client, address: str = "/login/hospital") -> HttpResponse:
    answer: HttpResponse = client.get(go(client, address))
    return answer


def words(answer: Any) -> str:
    return " ".join(answer.content.decode().split())


def test_somebody_of_the_right_group_lands_on_the_page_they_asked_for(
    client: Client, provider: HospitalProvider
) -> None:
    page = client.get("/login?next=/help")
    assert "/login/hospital?next=%2Fhelp" in page.content.decode()
    before = client.session.session_key
    answer = sign_in(client, "/login/hospital?next=/help")
    assert (answer.status_code, answer["Location"]) == (302, "/help")
    user = HospitalIdentity.objects.get(issuer=provider.url, subject="u-7").user
    assert (user.first_name, access.roles_of(user)) == ("Dr Autumn", {access.Role.CLINICIAN})
    assert not user.has_usable_password()
    assert client.session["_auth_user_id"] == str(user.pk)
    assert client.session.session_key != before
    assert "never-kept" not in str(dict(client.session))
    event = AuditEvent.objects.get(action="session.begin")
    assert (event.actor, event.outcome, event.detail["account"]) == (f"user:{user.pk}", "success", "hospital")
    sign_in(Client())
    assert User.objects.filter(hospital_identity__isnull=False).count() == 1


def test_what_the_provider_is_asked_for(client: Client, provider: HospitalProvider) -> None:
    there = client.get("/login/hospital")["Location"]
    asked = {name: values[0] for name, values in parse_qs(urlsplit(there).query).items()}
    assert {"state", "nonce", "code_challenge"} < asked.keys()
    assert (asked["scope"], asked["code_challenge_method"]) == ("openid profile", "S256")
    assert asked["redirect_uri"].endswith("/login/hospital/callback")


def test_no_button_and_no_way_where_it_is_not_configured(client: Client, db: None) -> None:
    assert "hospital" not in client.get("/login").content.decode()
    assert client.get("/login/hospital").status_code == 400
    assert client.get("/login/hospital/callback?state=x&code=y").status_code == 400


def test_nobody_is_sent_on_to_another_site(client: Client, provider: HospitalProvider) -> None:
    for evil in ("https://evil.example/", "//evil.example", "javascript:alert(1)"):
        assert sign_in(Client(), f"/login/hospital?next={evil}")["Location"] == "/"


def test_a_code_of_another_sign_in_is_not_sent_on(client: Client, provider: HospitalProvider) -> None:
    """RFC 9207: where `iss` comes along it is the provider's; where it must come, it does."""
    back = go(client)
    refused = client.get(f"{back}&iss=https://ehr.example/fhir")
    assert refused.status_code == 400
    assert "another sign-in than the one that was begun" in words(refused)
    assert "/token" not in provider.asked
    provider.discovery["authorization_response_iss_parameter_supported"] = True
    discovering.forget()
    assert sign_in(client).status_code == 400
    assert client.get(f"{go(client)}&iss={provider.url}").status_code == 302


def test_a_provider_that_does_not_answer_holds_few_threads(
    client: Client, provider: HospitalProvider
) -> None:
    """As with launches: anybody may come with a code."""
    waiting = [go(client) for _ in range(2)]
    for _ in range(discovering.MOST_AT_ONCE):
        accounts._exchanges.acquire()
    try:
        refused = client.get(waiting[0])
    finally:
        accounts._exchanges.release(discovering.MOST_AT_ONCE)
    assert refused.status_code == 503
    assert "try again in a while" in words(refused)
    assert "/token" not in provider.asked
    assert client.get(waiting[1]).status_code == 302


def test_without_a_group_no_account_is_made(client: Client, provider: HospitalProvider) -> None:
    for claims in ({"groups": []}, {"groups": ["cleaners"]}, {"groups": None}, {"groups": {"clinicians": 1}}):
        provider.claims = claims
        answer = sign_in(Client())
        assert answer.status_code == 403
        assert "none of the groups that may use this site" in words(answer)
    assert not User.objects.exists()
    assert set(AuditEvent.objects.filter(action="session.begin").values_list("outcome", flat=True)) == {
        "refused"
    }


def test_roles_and_units_follow_the_provider(provider: HospitalProvider, settings: Settings) -> None:
    settings.OIDC_ROLE_CLAIM, settings.OIDC_UNIT_CLAIM = "realm.roles", "wards"
    Unit.objects.create(name="Ward 4")
    provider.claims = {"realm": {"roles": ["clinicians", "admins"]}, "wards": ["Ward 4", "no such ward"]}
    sign_in(Client())
    user = HospitalIdentity.objects.get().user
    assert access.roles_of(user) == {access.Role.CLINICIAN, access.Role.ADMIN}
    assert list(Unit.objects.filter(members=user).values_list("name", flat=True)) == ["Ward 4"]
    provider.claims = {"realm": {"roles": ["admins"]}, "wards": []}
    sign_in(Client())
    assert access.roles_of(user) == {access.Role.ADMIN}
    assert not Unit.objects.filter(members=user).exists()
    assert not access.can_view_patients(User.objects.get(pk=user.pk))
    provider.claims = {"realm": {"roles": []}}
    assert sign_in(Client()).status_code == 403
    assert access.roles_of(user) == frozenset()
    assert AuditEvent.objects.filter(action="account.follow", object_id=str(user.pk)).count() == 3


def test_a_local_account_is_never_taken_over(provider: HospitalProvider) -> None:
    local = User.objects.create_user("u-7", email="autumn@hospital.example", password="correct horse battery")
    access.give_role(local, access.Role.ADMIN)
    client = Client()
    sign_in(client)
    assert client.session["_auth_user_id"] != str(local.pk)
    assert access.roles_of(HospitalIdentity.objects.get().user) == {access.Role.CLINICIAN}
    User.objects.filter(hospital_identity__isnull=False).update(is_active=False)
    answer = sign_in(Client())
    assert answer.status_code == 403
    assert "has been closed" in words(answer)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"claims": {"nonce": "another"}}, "nonce"),
        ({"claims": {"aud": "another-app"}}, "aud"),
        ({"claims": {"iss": "https://other.example"}}, "iss"),
        ({"claims": {"exp": 1000}}, "exp"),
        ({"claims": {"aud": [CLIENT, "another"], "azp": "another"}}, "azp"),
        ({"claims": {"sub": None}}, "sub is not"),
        ({"algorithm": "none"}, "does not verify"),
        ({"algorithm": "HS256", "signs_with": hmac_key(SECRET)}, "does not verify"),
        ({"algorithm": "RS256", "only": ["ES256"]}, "does not verify"),
    ],
)
def test_an_id_token_that_is_not_ours_is_refused(
    client: Client, provider: HospitalProvider, settings: Settings, how: dict[str, Any], said: str
) -> None:
    settings.OIDC_ALGORITHMS = how.get("only", settings.OIDC_ALGORITHMS)
    provider.claims = how.get("claims", {})
    provider.algorithm = how.get("algorithm", "ES256")
    provider.signs_with = how.get("signs_with") or (
        provider.keys["ES256"] if provider.algorithm == "none" else None
    )
    answer = sign_in(client)
    assert answer.status_code == 400
    assert said in words(answer)
    assert "_auth_user_id" not in client.session
    assert not User.objects.exists()


def test_a_callback_belongs_to_the_browser_it_began_in_and_is_good_once(
    client: Client, provider: HospitalProvider
) -> None:
    back = go(client)
    assert Client().get(back).status_code == 400
    assert client.get(back.replace("state=", "state=x")).status_code == 400
    assert client.get(back).status_code == 302
    assert client.get(back).status_code == 400
    state = parse_qs(urlsplit(go(client)).query)["state"][0]
    denied = client.get(f"/login/hospital/callback?error=access_denied&state={state}")
    assert (denied.status_code, "access_denied" in words(denied)) == (400, True)


@pytest.mark.parametrize(
    ("discovery", "status"),
    [
        ({"issuer": "https://other.example"}, 503),
        ({"token_endpoint": "https://other.example/token"}, 503),
        ({"code_challenge_methods_supported": ["plain"]}, 503),
        ({"jwks_uri": None}, 503),
    ],
)
def test_a_provider_that_says_what_it_must_not_is_not_used(
    client: Client, provider: HospitalProvider, discovery: dict[str, Any], status: int
) -> None:
    provider.discovery = discovery
    answer = client.get("/login/hospital")
    assert answer.status_code == status
    assert "could not be found" in words(answer)


def test_signing_in_by_key(
    client: Client, provider: HospitalProvider, settings: Settings, tmp_path: Any
) -> None:
    settings.OIDC_CLIENT_AUTH, settings.FHIR_KEYS = "private_key", tmp_path / "keys.json"
    assert client.get("/login/hospital").status_code == 503  # no key yet: it says which command
    signing.add_key("EC")
    provider.app_keys = ehr.public_keys(signing.private_keys())
    assert sign_in(client)["Location"] == "/"
    settings.OIDC_CLIENT_AUTH, settings.OIDC_CLIENT_SECRET = "secret", "wrong"
    provider.app_keys = None
    assert sign_in(Client()).status_code == 400


def test_signing_out_ends_the_session_there_too(client: Client, provider: HospitalProvider) -> None:
    sign_in(client)
    token = client.session["hospital"]["id_token"]
    answer = client.post("/logout")
    there = urlsplit(answer["Location"])
    assert f"{there.scheme}://{there.netloc}{there.path}" == f"{provider.url}/end"
    asked = parse_qs(there.query)
    assert asked["id_token_hint"] == [token]
    assert asked["post_logout_redirect_uri"][0].endswith("/login")
    assert "_auth_user_id" not in client.session
    provider.discovery = {"end_session_endpoint": None}
    discovering.forget()
    sign_in(client)
    assert client.post("/logout")["Location"] == "/login"


def test_a_hospital_account_shows_once_more_who_it_is_before_it_approves(
    ward: Clinic, provider: HospitalProvider
) -> None:
    candidate = ModelVersion.objects.get(number=3)
    asked = Promotion.objects.create(
        version=candidate, reason="better", requested_by=ward.people["admin"], requested_at=ward.now
    )
    provider.claims, client = {"groups": ["approvers"]}, Client()
    sign_in(client)
    page = client.get(f"/models/{candidate.pk}").content.decode()
    assert 'id="approve-password"' not in page
    assert "again=1" in page
    answer = client.post(f"/models/promotions/{asked.pk}/approve", {"password": ""})
    assert (answer.status_code, "Sign in at the hospital once more" in words(answer)) == (400, True)
    provider.claims["auth_time"] = int(time.time()) - 3600  # it did not ask again
    assert sign_in(client, f"/login/hospital?again=1&next=/models/{candidate.pk}").status_code == 400
    del provider.claims["auth_time"]
    assert sign_in(client, f"/login/hospital?again=1&next=/models/{candidate.pk}").status_code == 302
    assert "Sign in once more" not in client.get(f"/models/{candidate.pk}").content.decode()
    answer = client.post(f"/models/promotions/{asked.pk}/approve", {"password": ""})
    assert "Sign in at the hospital once more" not in words(answer)


def test_the_settings_are_checked_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.oidc_roles("a=b=admin, c=clinician") == (("a=b", "admin"), ("c", "clinician"))
    for wrong in ("admins", "admins=king", "=admin"):
        with pytest.raises(ImproperlyConfigured, match="OIDC_ROLES"):
            environment.oidc_roles(wrong)
    monkeypatch.setattr(project.ENV, "oidc_issuer", "https://id.example")
    monkeypatch.setattr(project.ENV, "oidc_algorithms", "none,HS256")
    with pytest.raises(
        ImproperlyConfigured, match=r"OIDC_CLIENT_ID.*OIDC_CLIENT_SECRET.*OIDC_ROLES.*OIDC_ALG"
    ):
        project._check_oidc()


def test_units_of_a_claim_are_only_those_there_are(db: None) -> None:
    assert accounts.values_of({"a": {"b": ["x", 1, None]}}, "a.b") == ["x"]
    assert accounts.values_of({"a.b": "x"}, "a.b") == ["x"]
    assert accounts.values_of({}, "a.b") == []
