"""JWT attacks, each by name: refused, or accepted where INTEROP 18 to 21 say so, and for the right reason."""

from __future__ import annotations

import base64
import hmac
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from cryptography.hazmat.primitives import hashes
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone
from joserfc.jwk import ECKey, RSAKey

from cds.audit import recording
from cds.audit.models import AuditEvent
from cds.hooks import registering
from cds.hooks.models import HookClient, SpentToken
from tests.cds.hooks.conftest import BASE, ISSUER, KEY, Call, token
from tests.cds.hooks.forging import ORDER, URL, WIDTH, b64, claims, der, forged, header, sign
from tests.cds.hooks.key_server import key_server

LIST = "/cds-services"
OWN = ECKey.generate_key("P-384", parameters={"kid": "own"})  # the attacker's
OTHER = ECKey.generate_key("P-384", parameters={"kid": "o1"})  # of another registered EHR
RSA = RSAKey.generate_key(2048, parameters={"kid": "r1"})
P256, P521 = ECKey.generate_key("P-256"), ECKey.generate_key("P-521")


@dataclass(frozen=True)
class Attack:
    """One token.

    make  builds it; given the moment, in seconds since 1970
    told  part of the refusal; "" where it must be let in
    """

    name: str
    make: Callable[[int], str]
    told: str = ""


def top(**changes: Any) -> Callable[[int], str]:
    """Another header, signed with the registered key."""
    return lambda now: forged(header(**changes), at(now))


def say(**changes: Any) -> Callable[[int], str]:
    """Other claims, signed with the registered key."""
    return lambda now: forged(None, at(now, **changes))


def when(**offsets: float) -> Callable[[int], str]:
    """Times as seconds from now, signed with the registered key."""
    return lambda now: forged(None, at(now, **{name: now + value for name, value in offsets.items()}))


def raw(text: str) -> Callable[[int], str]:
    """Claims as they stand here; EXP and IAT are the right ones."""

    def make(now: int) -> str:
        filled = text.replace("EXP", str(now + 300)).replace("IAT", str(now)).replace("JTI", uuid.uuid4().hex)
        return forged(None, filled.encode("utf-8", "surrogatepass"))

    return make


def at(now: int, **changes: Any) -> dict[str, Any]:
    return claims(**{"iat": now, "exp": now + 300, **changes})


def by(key: Any, digest: Any = None, **changes: Any) -> Callable[[int], str]:
    """Signed with another key, under another header."""
    return lambda now: forged(header(**changes), at(now), key=key, digest=digest)


def signed(signature: Callable[[bytes], bytes]) -> Callable[[int], str]:
    """Right words with a made-up signature over them."""

    def make(now: int) -> str:
        words = forged(None, at(now)).rpartition(".")[0]
        return f"{words}.{b64(signature(words.encode()))}"

    return make


def hashed(secret: bytes, alg: str) -> Callable[[int], str]:
    """An HMAC over the words."""

    def make(now: int) -> str:
        words = forged(header(alg=alg), at(now)).rpartition(".")[0].encode()
        return f"{words.decode()}.{b64(hmac.digest(secret, words, alg.replace('HS', 'sha')))}"

    return make


def unsigned(alg: Any) -> Callable[[int], str]:
    return lambda now: forged(header(alg=alg), at(now), signature=b"")


def cut(change: Callable[[list[str]], list[str]]) -> Callable[[int], str]:
    """The parts of a right token, moved about."""
    return lambda now: ".".join(change(forged(None, at(now)).split(".")))


def with_words(now: int, **changes: Any) -> str:
    """A right token whose payload was changed after it was signed."""
    first, _, last = forged(None, at(now)).split(".")
    return f"{first}.{b64(orjson.dumps(at(now, **changes)))}.{last}"


def with_header(now: int, **changes: Any) -> str:
    """A right token whose header was changed after it was signed."""
    _, words, last = forged(None, at(now)).split(".")
    return f"{b64(orjson.dumps(header(**changes)))}.{words}.{last}"


def plain_payload(now: int) -> str:
    """RFC 7797: the payload as it is, not as base64, and signed like that."""
    first = b64(orjson.dumps(header(b64=False, crit=["b64"])))
    words = orjson.dumps({**at(now), "iss": "https://ehr.example.org"}).decode().replace(".", "\\u002e")
    return f"{first}.{words}.{b64(sign(f'{first}.{words}'.encode()))}"


PEM, JWK = KEY.as_pem(private=False), orjson.dumps(KEY.as_dict(private=False))
PUBLIC = OWN.as_dict(private=False)
NO_JWT = "the token is not a signed JWT"
ALG, SIGNATURE = "alg must be ES384 or RS384", "the signature does not verify"
KID, HEADER, AUD = "kid is not among", "does not fit the registered key", f"aud must be {URL}"
ISS, KID_TEXT = "iss is not a registered client", "kid must name"
CRIT, JKU = "no critical header is understood", "jku is not the registered JWKS URL"
FULLWIDTH_K1, CYRILLIC = "\uff4b1", ISSUER.replace("e", "\u0435", 1)

ATTACKS = [
    # -- algorithms --------------------------------------------------------------------------------
    Attack("alg none without a signature", unsigned("none"), ALG),
    Attack("alg none in mixed case", unsigned("nOnE"), ALG),
    Attack("alg none with a right signature", top(alg="none"), ALG),
    Attack("alg empty", unsigned(""), ALG),
    Attack("no alg", top(alg=None), NO_JWT),
    Attack("alg a list", top(alg=["ES384"]), ALG),
    Attack("alg in lower case", top(alg="es384"), ALG),
    Attack("alg named twice, none last", lambda now: forged(
        b'{"alg":"ES384","typ":"JWT","kid":"k1","alg":"none"}', at(now)), ALG),
    Attack("key confusion: HS384 with the public key as PEM", hashed(PEM, "HS384"), ALG),
    Attack("key confusion: HS384 with the public key as JWK", hashed(JWK, "HS384"), ALG),
    Attack("key confusion: HS256 with the public key as PEM", hashed(PEM, "HS256"), ALG),
    Attack("HS512 with an empty secret", hashed(b"", "HS512"), ALG),
    Attack("RS256 with the registered RSA key", by(RSA, hashes.SHA256(), alg="RS256", kid="r1"), ALG),
    Attack("RS384 made with SHA-256", by(RSA, hashes.SHA256(), alg="RS384", kid="r1"), SIGNATURE),
    Attack("PS384", by(RSA, alg="PS384", kid="r1"), ALG),
    Attack("ES256 on P-256", by(P256, hashes.SHA256(), alg="ES256"), ALG),
    Attack("ES512 on P-521", by(P521, hashes.SHA512(), alg="ES512"), ALG),
    Attack("EdDSA", top(alg="EdDSA"), ALG),
    Attack("ES384 named over the kid of an RSA key", by(KEY, kid="r1"), HEADER),
    Attack("RS384 named over the kid of an EC key", by(RSA, alg="RS384"), HEADER),
    # -- keys --------------------------------------------------------------------------------------
    Attack("a key of one's own under a registered kid", by(OWN), SIGNATURE),
    Attack("a key of one's own inside the header (jwk)", by(OWN, jwk=PUBLIC), SIGNATURE),
    Attack("a key of one's own inside the header, its kid", by(OWN, jwk=PUBLIC, kid="own"), KID),
    Attack("x5u", by(OWN, x5u="https://thief.example/cert"), SIGNATURE),
    Attack("x5c", by(OWN, x5c=["MIIB"]), SIGNATURE),
    Attack("jku of one's own", by(OWN, jku="https://thief.example/keys", kid="own"), JKU),
    Attack("jku beside the right key", by(KEY, jku="https://thief.example/keys"), JKU),
    Attack("jku that is empty", by(KEY, jku=""), JKU),
    Attack("jku that is null", lambda now: forged(orjson.dumps({**header(), "jku": None}), at(now)),
           f"{JKU}|{NO_JWT}"),
    Attack("kid a path", by(OWN, kid="../../../../dev/null"), KID),
    Attack("kid as SQL", by(OWN, kid="' UNION SELECT 'x' --"), KID),
    Attack("kid with NUL behind a right one", by(OWN, kid="k1\x00"), KID),
    Attack("kid in full width", by(OWN, kid=FULLWIDTH_K1), KID),
    Attack("kid of another EHR, its issuer not", by(OTHER, kid="o1"), KID),
    Attack("kid empty", top(kid=""), KID_TEXT),
    Attack("no kid", top(kid=None), KID_TEXT),
    Attack("kid a number", top(kid=1), KID_TEXT),
    Attack("kid a list", top(kid=["k1"]), KID_TEXT),
    # -- signatures --------------------------------------------------------------------------------
    Attack("no signature", signed(lambda _: b""), SIGNATURE),
    Attack("psychic: r and s are zero", signed(lambda _: bytes(2 * WIDTH)), SIGNATURE),
    Attack("r and s the order of the curve", signed(lambda _: 2 * ORDER.to_bytes(WIDTH, "big")), SIGNATURE),
    Attack("r is right, s is zero", signed(lambda words: sign(words)[:WIDTH] + bytes(WIDTH)), SIGNATURE),
    Attack("cut short by one byte", signed(lambda words: sign(words)[:-1]), SIGNATURE),
    Attack("longer by one byte", signed(lambda words: sign(words) + b"\x00"), SIGNATURE),
    Attack("as DER", signed(der), SIGNATURE),
    Attack("by a P-256 key, 64 bytes", signed(lambda words: sign(words, P256)), SIGNATURE),
    Attack("by a P-521 key, 132 bytes", signed(lambda words: sign(words, P521)), SIGNATURE),
    Attack("made with SHA-256", by(KEY, hashes.SHA256()), SIGNATURE),
    Attack("of other words", signed(lambda _: sign(b"e30.e30")), SIGNATURE),
    Attack("words changed after signing", lambda now: with_words(now, sub="admin"), SIGNATURE),
    Attack("header changed after signing", lambda now: with_header(now, cty="JWT"), SIGNATURE),
    # -- shapes ------------------------------------------------------------------------------------
    Attack("two dots and nothing else", lambda _: "..", NO_JWT),
    Attack("two parts", cut(lambda parts: parts[:2]), NO_JWT),
    Attack("four parts", cut(lambda parts: [*parts, parts[2]]), NO_JWT),
    Attack("five parts, as of a JWE", cut(lambda parts: [*parts, "e30", "e30"]), NO_JWT),
    Attack("payload detached", cut(lambda parts: [parts[0], "", parts[2]]), NO_JWT),
    Attack("payload in plain text", cut(lambda parts: [parts[0], '{"iss":"x"}', parts[2]]), NO_JWT),
    Attack("JSON serialisation", lambda _: '{"payload":"e30","signature":""}', NO_JWT),
    Attack("header a list that names alg", lambda now: forged(b'["alg"]', at(now)), NO_JWT),
    Attack("header not JSON", lambda now: forged(b"alg", at(now)), NO_JWT),
    Attack("payload a list", lambda _: forged(None, [1]), NO_JWT),
    Attack("payload not UTF-8", lambda _: forged(None, b'{"iss":"\xff"}'), NO_JWT),
    Attack("payload nested 100,000 deep", lambda _: forged(None, b"[" * 3000), NO_JWT),
    Attack("a token of 100 KB", say(pad="x" * 100_000), "at most 8192 characters"),
    Attack("a header of 2 KB", top(pad="x" * 2000), NO_JWT),
    Attack("crit names what nobody knows", top(crit=["tenant"], tenant="x"), CRIT),
    Attack("crit names exp", top(crit=["exp"]), CRIT),
    Attack("crit empty", top(crit=[]), CRIT),
    Attack("b64 false, payload as it is", plain_payload, f"{NO_JWT}|{CRIT}"),
    Attack("b64 false without crit", top(b64=False), f"{NO_JWT}|{CRIT}"),
    Attack("typ of another kind of token", top(typ="at+jwt"), "typ must be JWT"),
    Attack("no typ", top(typ=None), "typ must be JWT"),
    Attack("a header nobody knows (RFC 7515: passed over)", top(trace="1")),
    # -- who ---------------------------------------------------------------------------------------
    Attack("issuer with a slash at its end", say(iss=ISSUER + "/"), ISS),
    Attack("issuer in capitals", say(iss=ISSUER.upper()), ISS),
    Attack("issuer with a Cyrillic letter", say(iss=CYRILLIC), ISS),
    Attack("issuer with a space", say(iss=ISSUER + " "), ISS),
    Attack("issuer with NUL", say(iss=ISSUER + "\x00"), ISS),
    Attack("issuer with half a surrogate pair", raw(
        f'{{"iss":"{ISSUER}\\ud800","aud":"{URL}","iat":IAT,"exp":EXP,"jti":"JTI"}}'), NO_JWT),
    Attack("issuer a list", say(iss=[ISSUER]), ISS),
    Attack("no issuer", say(iss=None), ISS),
    Attack("issuer of another registered EHR", say(iss="https://other.example.org"), KID),
    Attack("issuer of a withdrawn EHR, its own key", lambda now: forged(
        header(kid="o1"), at(now, iss="https://withdrawn.example.org"), key=OTHER), ISS),
    Attack("issuer named twice: the last one counts", raw(
        f'{{"iss":"{ISSUER}","aud":"{URL}","iat":IAT,"exp":EXP,"jti":"JTI","iss":"x"}}'), ISS),
    # -- for whom ----------------------------------------------------------------------------------
    Attack("aud of another path", say(aud=f"{URL}/x"), AUD),
    Attack("aud a prefix", say(aud=BASE), AUD),
    Attack("aud with a slash at its end", say(aud=URL + "/"), AUD),
    Attack("aud with a query", say(aud=URL + "?x=1"), AUD),
    Attack("aud of another host", say(aud=URL.replace("127.0.0.1", "localhost")), AUD),
    Attack("aud of another port", say(aud=URL.replace("8000", "8001")), AUD),
    Attack("aud by https", say(aud=URL.replace("http:", "https:")), AUD),
    Attack("aud in capitals", say(aud=URL.upper()), AUD),
    Attack("aud with a user name", say(aud=URL.replace("//", "//x@")), AUD),
    Attack("aud a list without it", say(aud=[f"{URL}/x", BASE]), AUD),
    Attack("aud a list of lists", say(aud=[[URL]]), AUD),
    Attack("aud an object", say(aud={URL: 1}), AUD),
    Attack("aud an empty list", say(aud=[]), AUD),
    Attack("no aud", say(aud=None), AUD),
    Attack("aud a list with it", say(aud=["https://other.example", URL])),
    Attack("aud named twice: the last one counts", raw(
        f'{{"iss":"{ISSUER}","aud":"{BASE}","iat":IAT,"exp":EXP,"jti":"JTI","aud":"{URL}"}}')),
    # -- when: 60 seconds of skew, either way --------------------------------------------------------
    Attack("expired 60 s ago", when(iat=-400, exp=-60)),
    Attack("expired 61 s ago", when(iat=-400, exp=-61), "the token has expired"),
    Attack("issued 60 s from now", when(iat=60, exp=300)),
    Attack("issued 61 s from now", when(iat=61, exp=300), "iat lies in the future"),
    Attack("not before 60 s from now", when(nbf=60)),
    Attack("not before 61 s from now", when(nbf=61), "nbf lies in the future"),
    Attack("good for an hour, and the skew", when(exp=3660)),
    Attack("good for longer than an hour", when(exp=3661), "exp lies more than"),
    Attack("seconds with a fraction", when(iat=-0.5, exp=299.5)),
    Attack("exp for ever", say(exp=10**15), "exp must be a number"),
    Attack("exp negative", say(exp=-1), "exp must be a number"),
    Attack("exp as text", say(exp="9999999999"), "exp must be a number"),
    Attack("exp true", say(exp=True), "exp must be a number"),
    Attack("exp NaN", raw(f'{{"iss":"{ISSUER}","aud":"{URL}","iat":IAT,"exp":NaN,"jti":"JTI"}}'), NO_JWT),
    Attack("exp too large for a number", raw(
        f'{{"iss":"{ISSUER}","aud":"{URL}","iat":IAT,"exp":1e999,"jti":"JTI"}}'), f"{NO_JWT}|exp must be"),
    Attack("no exp", say(exp=None), "exp must be a number"),
    Attack("iat as text", say(iat="0"), "iat must be a number"),
    Attack("no iat", say(iat=None), "iat must be a number"),
    Attack("nbf as text", say(nbf="0"), "nbf must be a number"),
    # -- once --------------------------------------------------------------------------------------
    Attack("no jti", say(jti=None), "jti must be text"),
    Attack("jti empty", say(jti=""), "jti must be text"),
    Attack("jti a number", say(jti=7), "jti must be text"),
    Attack("jti a list", say(jti=["a"]), "jti must be text"),
    Attack("jti of 201 characters", say(jti="x" * 201), "jti must be text"),
    Attack("jti with NUL", say(jti="a\x00b"), "jti must be text"),
    Attack("jti with half a surrogate pair", raw(
        f'{{"iss":"{ISSUER}","aud":"{URL}","iat":IAT,"exp":EXP,"jti":"\\ud800"}}'), NO_JWT),
    Attack("jti in another script", lambda now: forged(None, at(now, jti=f"\u03ba\u03bb-{uuid.uuid4()}"))),
    # -- signed with the other kind of key -----------------------------------------------------------
    Attack("RS384 with the registered RSA key", by(RSA, alg="RS384", kid="r1")),
    Attack("ES384 with the registered EC key", say()),
]  # fmt: skip


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> datetime:
    """The clock stands still, at a whole second, so that a boundary is one."""
    still = timezone.now().replace(microsecond=0)
    monkeypatch.setattr("cds.hooks.endpoints.timezone.now", lambda: still)
    return still


@pytest.fixture
def ehrs(hook_client: HookClient, now: datetime) -> HookClient:
    """The EHR with an EC and an RSA key, another one, and one that is withdrawn."""
    keys = [KEY.as_dict(private=False), RSA.as_dict(private=False)]
    HookClient.objects.filter(pk=hook_client.pk).update(jwks={"keys": keys})
    HookClient.objects.bulk_create(
        HookClient(
            name=name,
            issuer=f"https://{name}.example.org",
            jwks={"keys": [OTHER.as_dict(private=False)]},
            source=hook_client.source,
            is_active=name == "other",
            created_at=now,
        )
        for name in ("other", "withdrawn")
    )
    return hook_client


def said(response: HttpResponse) -> str:
    return str(response.json()["issue"][0]["diagnostics"])


def judge(response: HttpResponse, told: str) -> None:
    """Let in, or refused with 401 as an OperationOutcome that says why, audited."""
    if not told:
        assert response.status_code == 200, said(response)
        return
    assert response.status_code == 401
    assert response["WWW-Authenticate"].startswith("Bearer")
    assert response.json()["issue"][0]["code"] == "login"
    assert any(one in said(response) for one in told.split("|")), said(response)
    assert AuditEvent.objects.filter(action="hook.call", outcome="refused").exists()


def test_there_are_as_many_as_we_say() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(names) == len(set(names))
    assert len([attack for attack in ATTACKS if attack.told]) >= 100
    assert len([attack for attack in ATTACKS if not attack.told]) >= 10


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name.replace(" ", "-"))
def test_a_forged_token(call: Call, ehrs: HookClient, now: datetime, attack: Attack) -> None:
    judge(call(LIST, bearer=attack.make(int(now.timestamp()))), attack.told)


# -- tenants, places, times of their own ---------------------------------------------------------------
@pytest.mark.parametrize(
    ("tenant", "told"),
    [
        (None, "tenant is not"),
        ("south", "tenant is not"),
        ("NORTH", "tenant is not"),
        (["north"], "tenant is not"),
        ("north", ""),
    ],
    ids=["none", "another", "in capitals", "a list", "the registered one"],
)
def test_a_tenant(call: Call, hook_client: HookClient, tenant: Any, told: str) -> None:
    HookClient.objects.filter(pk=hook_client.pk).update(tenant="north")
    judge(call(LIST, bearer=forged(None, claims(tenant=tenant))), told)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("", 401),
        ("Basic {}", 401),
        ("JWT {}", 401),
        ("{}", 401),
        ("Bearer", 401),
        ("Bearer {} {}", 401),
        ("Bearer {},{}", 401),
        ("Bearer \u00e9", 401),
        ("bearer {}", 200),
    ],
)
def test_how_a_token_is_sent(call: Call, hook_client: HookClient, sent: str, status: int) -> None:
    value = sent.replace("{}", token(URL))
    assert Client().get(LIST, headers={"Authorization": value} if value else {}).status_code == status


def test_a_token_in_the_address_is_not_looked_at(hook_client: HookClient) -> None:
    assert Client().get(f"{LIST}?access_token={token(URL)}").status_code == 401


@pytest.mark.parametrize("name", ["jku", "x5u"])
def test_no_address_of_a_token_is_fetched(call: Call, hook_client: HookClient, name: str) -> None:
    with key_server() as thief:
        thief.publish(OWN)
        assert (
            call(LIST, bearer=forged(header(**{name: thief.url, "kid": "own"}), key=OWN)).status_code == 401
        )
        assert thief.asked == []


@pytest.mark.parametrize("changes", [{}, {"kid": "r1", "alg": "RS384"}], ids=["same token", "same jti"])
def test_once(call: Call, ehrs: HookClient, changes: dict[str, Any]) -> None:
    words = claims()
    assert call(LIST, bearer=forged(None, words)).status_code == 200
    again = forged(header(**changes), words, key=RSA if changes else KEY)
    judge(call(LIST, bearer=again), "this jti was used before")
    noted = AuditEvent.objects.filter(action="hook.call", outcome="refused").latest("pk")
    assert noted.actor == f"client:{ehrs.pk}"  # whoever signed it is known: a replay is no stranger's


def test_a_signature_written_otherwise_is_the_same_token(call: Call, ehrs: HookClient) -> None:
    """ECDSA signatures can be written anew without the key (n - s); the jti has been used all the same."""
    first = forged()
    words, _, last = first.rpartition(".")
    written = base64.urlsafe_b64decode(last)
    s = ORDER - int.from_bytes(written[WIDTH:], "big")
    turned = written[:WIDTH] + s.to_bytes(WIDTH, "big")
    assert call(LIST, bearer=first).status_code == 200
    judge(call(LIST, bearer=f"{words}.{b64(turned)}"), "this jti was used before")


def test_a_spent_jti_of_one_ehr_is_no_matter_of_another(call: Call, ehrs: HookClient) -> None:
    jti = str(uuid.uuid4())
    assert call(LIST, bearer=forged(None, claims(jti=jti))).status_code == 200
    other = forged(header(kid="o1"), claims(jti=jti, iss="https://other.example.org"), key=OTHER)
    assert call(LIST, bearer=other).status_code == 200


def test_it_stays_spent_until_it_has_expired_for_certain(
    call: Call, hook_client: HookClient, settings: Any, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.HOOKS_REDIS_URL = ""
    seconds = int(now.timestamp())
    bearer = forged(None, claims(iat=seconds, exp=seconds + 10))
    assert call(LIST, bearer=bearer).status_code == 200
    monkeypatch.setattr("cds.hooks.spending._purged", -1e9)  # what has expired is cleared away now
    monkeypatch.setattr("cds.hooks.endpoints.timezone.now", lambda: now + timedelta(seconds=70))
    assert "used before" in said(call(LIST, bearer=bearer))
    monkeypatch.setattr("cds.hooks.endpoints.timezone.now", lambda: now + timedelta(seconds=71))
    assert "expired" in said(call(LIST, bearer=bearer))


def test_a_withdrawn_ehr_is_refused_at_once(call: Call, hook_client: HookClient, now: datetime) -> None:
    assert call(LIST).status_code == 200
    registering.withdraw(ISSUER, by=recording.system("tests"), now=now)
    judge(call(LIST), ISS)


# -- another process -----------------------------------------------------------------------------------
@pytest.fixture(params=["database", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where spent tokens are kept: rows, or a Redis of its own."""
    if request.param == "database":
        yield ""
        return
    from cds.demo import processes
    from tests.flows.workers import free_port

    port = free_port()
    supervisor = processes.Supervisor(logs=tmp_path / "logs", environment={})
    supervisor.start(processes.broker(port=port, folder=tmp_path / "data"))
    supervisor.wait_until_ready()
    yield f"redis://127.0.0.1:{port}/0"
    supervisor.stop()


@pytest.mark.django_db(transaction=True)
def test_what_another_process_spent_is_refused_here(
    store: str, hook_client: HookClient, settings: Any, tmp_path: Path
) -> None:
    """A token used in a process of its own, on the same database: no second time here, nor there."""
    settings.HOOKS_REDIS_URL = store
    bearer = token(URL)
    script = (
        "import sys, django; django.setup()\n"
        "from django.test import Client\n"
        "sent = {'Authorization': 'Bearer ' + sys.argv[1]}\n"
        "print([Client().get('/cds-services', headers=sent).status_code for _ in range(2)])\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", script, bearer],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "cds.settings",
            "DATABASE_URL": database_url(),
            "REDIS_URL": store,
            "ALLOWED_HOSTS": "testserver",
            "TESSERA_DATA_DIR": str(tmp_path),
            "LOG_LEVEL": "ERROR",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert there.stdout.splitlines()[-1:] == ["[200, 401]"], there.stderr
    assert SpentToken.objects.count() == (0 if store else 1)
    answer = Client().get(LIST, headers={"Authorization": f"Bearer {bearer}"})
    assert answer.status_code == 401
    assert "used before" in said(answer)
    assert timezone.now() - HookClient.objects.get().last_call_at < timedelta(minutes=5)  # type: ignore[operator]


def database_url() -> str:
    """The database of this test, for another process."""
    known = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{known['NAME']}"
    return f"postgres://{known['USER']}:{known['PASSWORD']}@{known['HOST']}:{known['PORT']}/{known['NAME']}"
