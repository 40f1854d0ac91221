"""Configuration, from the environment only. `.env.example` lists every variable with its meaning.

With nothing set, everything runs embedded under ./var: SQLite, a Valkey server started by `manage.py demo`,
loopback only. Set DATABASE_URL and REDIS_URL and the same code runs on PostgreSQL and Redis.
"""

from __future__ import annotations

import json
import re
import secrets
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import dj_database_url
from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

BASE_DIR = Path(__file__).resolve().parent.parent


class Environment(BaseSettings):
    """Every variable Tessera reads, typed; a bad value stops the start and says which."""

    model_config = SettingsConfigDict(env_file=BASE_DIR / ".env", extra="ignore")

    tessera_env: Literal["embedded", "production"] = Field(
        "embedded", description="embedded: loopback and local files. production: strict checks at start."
    )
    tessera_data_dir: Path = Field(
        BASE_DIR / "var", description="Database file, studies and bundles live here."
    )
    secret_key: str = Field(
        "", description="Signing key. Required in production; made and kept in the data dir otherwise."
    )
    debug: bool = Field(False, description="Django debug pages. Refused in production.")
    allowed_hosts: str = Field("127.0.0.1,localhost", description="Host names served, comma separated.")
    public_url: str = Field(
        "http://127.0.0.1:8000", description="The address users and EHRs reach us by; https in production."
    )
    database_url: str = Field(
        "", description="postgres://user:password@host:5432/name; empty: SQLite in the data dir."
    )
    redis_url: str = Field(
        "", description="redis://host:6379/0; empty: the embedded broker that `manage.py demo` starts."
    )
    study_store: Path | None = Field(
        None, description="Where pixels are kept; empty: <data dir>/studies. Shared by web and workers."
    )
    segmenter_store: Path | None = Field(
        None,
        description="Segmenters that measure pictures on arrival; empty: <data dir>/segmenters. "
        "Read by workers.",
    )
    bundle_store: Path | None = Field(
        None, description="Where models are kept; empty: <data dir>/bundles. Shared by web and workers."
    )
    fhir_keys: Path | None = Field(
        None,
        description="Keys that sign in to FHIR servers; empty: <data dir>/fhir-keys.json. Keep it secret.",
    )
    code_map: Path | None = Field(
        None, description="CSV of the site's own codes and what they mean; check it by `code_map check FILE`."
    )
    dicom_tls_ca: str = Field(
        "",
        description="DICOM over TLS: the hospital's authority (CA), PEM, whose certificates are trusted.",
    )
    dicom_tls_cert: str = Field(
        "", description="DICOM over TLS: our certificate with its chain, PEM, for nodes that ask who calls."
    )
    dicom_tls_key: str = Field(
        "", description="Its private key, PEM without a password, where it is not in the same file."
    )
    frame_ancestors: str = Field("", description="Origins of EHRs that may embed the panel, comma separated.")
    regulatory_label: str = Field("Research use only", description="Shown beside every score.")
    hooks_open: bool = Field(
        False, description="Serve CDS Hooks without client authentication: demo on loopback only."
    )
    hooks_wait_ms: int = Field(300, ge=0, le=450, description="How long a hook call waits for a fresh score.")
    hooks_budget_ms: int = Field(
        450, ge=50, le=5000, description="After this long a hook call is answered 503, whatever it waits for."
    )
    hooks_feedback_budget_ms: int = Field(
        10_000,
        ge=50,
        le=60_000,
        description="After this long what is left of a batch of feedback is answered 503; the rest is kept.",
    )
    hooks_offered: str = Field(
        "patient-view,encounter-start,encounter-discharge,order-select,order-sign,appointment-book",
        description="CDS Hooks offered to EHRs, comma separated.",
    )
    hooks_calls_per_minute: int = Field(
        12_000, ge=0, description="Calls a minute one EHR may make; more are answered 429. 0: no limit."
    )
    hooks_alert_at: str = Field(
        "high",
        description="Category from which a card is a warning: low, moderate, high, very-high or never; "
        "for one outcome alone: death=moderate,icu-admission=high.",
    )
    hooks_critical_at: str = Field("never", description="The same for cards that are critical.")
    hooks_quiet_hours: float = Field(
        12,
        ge=0,
        description="For this long the same person is not alerted again to the same risk of a patient.",
    )
    hooks_quiet_roles: str = Field(
        "Patient,RelatedPerson",
        description="Users whom no card ever alerts, by FHIR type or one by one: "
        "RelatedPerson,PractitionerRole/n17.",
    )
    risk_policies: Path | None = Field(
        None,
        description="JSON of the site's own risk bounds and policy texts, by outcome; empty: those shipped.",
    )
    score_interval_minutes: int = Field(60, ge=1, description="A score older than twice this is Stale.")
    fairness_auroc_gap: float = Field(
        0.1, ge=0, le=1, description="A model whose AUROC differs more between groups is not promoted."
    )
    fairness_calibration_gap: float = Field(
        0.1, ge=0, le=1, description="The same for the share of events observed minus that expected."
    )
    image_backbone: str = Field(
        "efficientnet_lite0",
        description="Image encoder used for studies that arrive before any model is active.",
    )
    image_weights: Path | None = Field(
        None, description="Weights of that image encoder (safetensors); empty: those of its package."
    )
    encoder_runtime: Literal["onnxruntime", "torch"] = Field(
        "onnxruntime", description="What runs the image encoders of the workers: onnxruntime or torch."
    )
    encoder_threads: int = Field(
        1, ge=1, description="Threads of one encoding; more than one pays only on an idle machine."
    )
    text_backbone: str = Field(
        "minilm",
        description="Text encoder (minilm, hashing or a folder) of notes that arrive before any model is "
        "active.",
    )
    text_store: Path | None = Field(
        None,
        description="Folder of other text encoders, one folder each; empty: <data dir>/text. "
        "Read by workers.",
    )
    oidc_issuer: str = Field(
        "", description="Issuer of the hospital's own accounts (OpenID Connect); empty: local accounts only."
    )
    oidc_client_id: str = Field("", description="What that provider calls us.")
    oidc_client_auth: Literal["secret", "private_key", "none"] = Field(
        "secret",
        description="How we sign in there: secret (OIDC_CLIENT_SECRET), private_key (that of "
        "`manage.py fhir_key`), or none (PKCE alone).",
    )
    oidc_client_secret: str = Field("", description="The secret shared with the provider.")
    oidc_scopes: str = Field("openid profile", description="Scopes asked for; openid is one of them.")
    oidc_role_claim: str = Field(
        "groups", description="Claim of the id_token that names groups, such as realm_access.roles."
    )
    oidc_roles: str = Field(
        "",
        description="Which of those groups are which role, comma separated: "
        "tessera-clinicians=clinician,tessera-admins=admin,tessera-approvers=approver.",
    )
    oidc_unit_claim: str = Field(
        "", description="Claim that names the units a person sees; empty: units are given here."
    )
    oidc_algorithms: str = Field(
        "RS256,ES256,PS256", description="Signatures of id_tokens that are accepted; never none or HMAC."
    )
    oidc_origins: str = Field("", description="Further origins of the provider's endpoints, comma separated.")
    session_idle_minutes: int = Field(15, ge=1, description="Sign out after this long without a click.")
    session_hours: int = Field(8, ge=1, description="Sign out after this long in any case.")
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_json: bool = Field(True, description="One JSON object a line; false: coloured text for people.")
    tls_at_proxy: bool = Field(
        True, description="Production sits behind a proxy that sets X-Forwarded-Proto."
    )
    trusted_proxies: str = Field(
        "127.0.0.1,::1",
        description="Addresses or networks of that proxy, comma separated: X-Forwarded-For counts only from "
        "there.",
    )
    tz: str = Field("UTC", description="Time zone of the screens, and of DICOM times that name none.")


ENV = Environment()  # type: ignore[call-arg]
PRODUCTION = ENV.tessera_env == "production"
DATA_DIR = ENV.tessera_data_dir.resolve()


def _secret_key() -> str:
    if ENV.secret_key:
        return ENV.secret_key
    if PRODUCTION:
        raise ImproperlyConfigured("SECRET_KEY must be set in production: 50 or more random characters.")
    kept = DATA_DIR / "secret_key"
    if not kept.exists():
        DATA_DIR.mkdir(parents=True, exist_ok=True)
        kept.touch(mode=0o600)
        kept.write_text(secrets.token_urlsafe(50))
    return kept.read_text()


def _refuse_unsafe_production() -> None:
    problems = []
    if ENV.debug:
        problems.append("DEBUG must be false")
    if not ENV.public_url.startswith("https://"):
        problems.append("PUBLIC_URL must be https")
    if len(set(ENV.secret_key)) < 10 or "change-me" in ENV.secret_key:
        problems.append("SECRET_KEY must be random, not a default")
    if ENV.hooks_open:
        problems.append("HOOKS_OPEN is for demos on loopback")
    if not ENV.redis_url:
        problems.append("REDIS_URL must be set")
    if problems:
        raise ImproperlyConfigured("Refusing to start in production: " + "; ".join(problems) + ".")


def _demo() -> dict[str, Any]:
    """What `manage.py demo` chose in this data directory, so that other commands reach its processes."""
    kept = DATA_DIR / "demo.json"
    return dict(json.loads(kept.read_text())) if kept.exists() else {}


def _public_url() -> str:
    """As configured; else where the demo of this data directory serves."""
    port = None if PRODUCTION or "public_url" in ENV.model_fields_set else _demo().get("web_port")
    return f"http://127.0.0.1:{port}" if port else ENV.public_url.rstrip("/")


def _categories(said: str) -> dict[str, str]:
    """Outcome → category from which something holds; "" is for all outcomes that are not named."""
    known, found = {"low", "moderate", "high", "very-high", "never"}, {"": "never"}
    for part in said.split(","):
        outcome, _, category = part.strip().rpartition("=")
        if category not in known:
            raise ImproperlyConfigured(
                f"HOOKS_ALERT_AT and HOOKS_CRITICAL_AT take {', '.join(sorted(known))}"
            )
        found[outcome.strip()] = category
    return found


def _listed(said: str) -> list[str]:
    return [one.strip() for one in said.split(",") if one.strip()]


HOOKS = (  # as `cds.hooks.contexts` reads them; in its order
    "patient-view", "encounter-start", "encounter-discharge", "order-select", "order-sign",
    "appointment-book",
)  # fmt: skip
USERS = ("Practitioner", "PractitionerRole", "Patient", "RelatedPerson")


def _some_of(name: str, said: str, allowed: tuple[str, ...]) -> list[str]:
    """A list of words that are all known: a misspelt one would be passed over unseen."""
    found = _listed(said)
    unknown = [one for one in found if one not in allowed]
    if unknown:
        raise ImproperlyConfigured(f"{name} takes {', '.join(allowed)}; not {', '.join(unknown)}")
    return found


def _quiet_roles(said: str) -> frozenset[str]:
    """FHIR types of users, and users as an EHR names them: [Type]/[id]."""
    found = frozenset(_listed(said))
    _some_of("HOOKS_QUIET_ROLES", ",".join(one.partition("/")[0] for one in found), USERS)
    wrong = sorted(one for one in found if not re.fullmatch(r"\w+(/[A-Za-z0-9\-.]{1,64})?", one))
    if wrong:
        raise ImproperlyConfigured(
            f"HOOKS_QUIET_ROLES takes a FHIR type, or [Type]/[id]; not {', '.join(wrong)}"
        )
    return found


def _oidc_roles(said: str) -> tuple[tuple[str, str], ...]:
    """(group there, role here), as OIDC_ROLES lists them; a group's name may hold `=`."""
    pairs = [one.rpartition("=") for one in _listed(said)]
    if any(not group or role not in {"clinician", "admin", "approver"} for group, _, role in pairs):
        raise ImproperlyConfigured("OIDC_ROLES takes GROUP=clinician, GROUP=admin or GROUP=approver")
    return tuple((group.strip(), role) for group, _, role in pairs)


def _networks(said: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(one) for one in _listed(said))
    except ValueError as error:
        raise ImproperlyConfigured(
            f"TRUSTED_PROXIES takes addresses or networks, such as 172.18.0.1 or 10.3.0.0/16: {error}"
        ) from None


def _origins_of(*urls: str) -> list[str]:
    return [f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in urls if url]


def _is_web_address(url: str) -> bool:
    """https, or plain http to this very machine outside production."""
    parts = urlsplit(url)
    is_here = parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"}
    return bool(parts.hostname) and (parts.scheme == "https" or (is_here and not PRODUCTION))


def _check_oidc() -> None:
    if not ENV.oidc_issuer:
        if ENV.oidc_client_id or ENV.oidc_roles:
            raise ImproperlyConfigured("Sign-in with hospital accounts: OIDC_ISSUER must be set.")
        return
    addresses = [("OIDC_ISSUER", ENV.oidc_issuer)]
    addresses += [("OIDC_ORIGINS", one) for one in _listed(ENV.oidc_origins)]
    problems = [
        f"{name} takes https://host, not {url!r}" for name, url in addresses if not _is_web_address(url)
    ]
    if not ENV.oidc_client_id:
        problems.append("OIDC_CLIENT_ID must be set")
    if ENV.oidc_client_auth == "secret" and not ENV.oidc_client_secret:
        problems.append("OIDC_CLIENT_SECRET must be set, or OIDC_CLIENT_AUTH be private_key or none")
    if not ENV.oidc_roles:
        problems.append("OIDC_ROLES must say which groups may come in")
    if "openid" not in ENV.oidc_scopes.split():
        problems.append("OIDC_SCOPES must hold openid")
    known = {"RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384"}
    if not _listed(ENV.oidc_algorithms) or set(_listed(ENV.oidc_algorithms)) - known:
        problems.append(f"OIDC_ALGORITHMS takes {', '.join(sorted(known))}")
    if problems:
        raise ImproperlyConfigured("Sign-in with hospital accounts: " + "; ".join(problems) + ".")


SECRET_KEY = _secret_key()
if PRODUCTION:
    _refuse_unsafe_production()
DEBUG = ENV.debug
ALLOWED_HOSTS = [host.strip() for host in ENV.allowed_hosts.split(",") if host.strip()]
PUBLIC_URL = _public_url()
# whose X-Forwarded-For counts (cds.audit.callers): nobody's where callers come without a proxy
TRUSTED_PROXIES = _networks(ENV.trusted_proxies) if PRODUCTION and ENV.tls_at_proxy else ()

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "csp",
    "django_htmx",
    "django_prometheus",
    "django_structlog",
    "cds.jobs",
    "cds.audit",
    "cds.patients",
    "cds.studies",
    "cds.registry",
    "cds.risk",
    "cds.sending",
    "cds.research",
    "cds.hooks",
    "cds.subscriptions",
    "cds.launch",
    "cds.demo",
    "cds",
    "web",
]

MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "web.middleware.RequestLog",
    "csp.middleware.CSPMiddleware",
    "web.middleware.Launches",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "web.middleware.PrivatePages",
    "axes.middleware.AxesMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

ROOT_URLCONF = "cds.urls"
ASGI_APPLICATION = "cds.asgi.application"

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "web.context.page",
            ],
        },
    },
]

# -- storage ---------------------------------------------------------------------------------------
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
if ENV.database_url:
    DATABASES = {"default": dj_database_url.parse(ENV.database_url)}
    if DATABASES["default"]["ENGINE"].endswith("postgresql"):
        DATABASES["default"].setdefault("OPTIONS", {})
        DATABASES["default"]["OPTIONS"].setdefault("pool", {"min_size": 1, "max_size": 8, "timeout": 5})
        # A server that vanishes without a word is missed in seconds, not in TCP's quarter of an hour.
        for _name, _value in {
            "connect_timeout": 3,
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 30,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }.items():
            DATABASES["default"]["OPTIONS"].setdefault(_name, _value)
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(DATA_DIR / "tessera.sqlite3"),
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON;",
            },
            "TEST": {"NAME": str(DATA_DIR / "test.sqlite3")},
        }
    }
STUDY_STORE = (ENV.study_store or DATA_DIR / "studies").resolve()
SEGMENTER_STORE = (ENV.segmenter_store or DATA_DIR / "segmenters").resolve()
FHIR_KEYS = (ENV.fhir_keys or DATA_DIR / "fhir-keys.json").resolve()
CODE_MAP = ENV.code_map.resolve() if ENV.code_map else None
DICOM_TLS_CA, DICOM_TLS_CERT, DICOM_TLS_KEY = ENV.dicom_tls_ca, ENV.dicom_tls_cert, ENV.dicom_tls_key
BUNDLE_STORE = (ENV.bundle_store or DATA_DIR / "bundles").resolve()

# -- tasks -----------------------------------------------------------------------------------------
REDIS_URL = ENV.redis_url or f"redis://127.0.0.1:{_demo().get('broker_port') or 6399}/0"
CELERY_BROKER_URL = REDIS_URL
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_DEFAULT_QUEUE = "interactive"
CELERY_TASK_CREATE_MISSING_QUEUES = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 4
    * 3600,  # longer than any task; a lost worker's jobs come back sooner, by the sweeper
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
}
CELERY_TASK_PUBLISH_RETRY = False  # the outbox retries; a request never waits for a broker
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULE = {
    "sweep": {"task": "cds.jobs.tasks.sweep", "schedule": 15.0, "options": {"expires": 15}},
    "stale": {"task": "cds.risk.tasks.refresh_stale", "schedule": 300.0, "options": {"expires": 300}},
    "subscriptions": {
        "task": "cds.subscriptions.tasks.watch",
        "schedule": 60.0,
        "options": {"expires": 60},
    },
    "results": {"task": "cds.sending.tasks.collect", "schedule": 15.0, "options": {"expires": 15}},
    "sessions": {
        "task": "cds.launch.tasks.end_sessions",
        "schedule": 3600.0,
        "options": {"expires": 3600},
    },
    "inputs": {"task": "cds.risk.tasks.watch_inputs", "schedule": 21600.0, "options": {"expires": 3600}},
}
CELERY_BEAT_SCHEDULE_FILENAME = str(DATA_DIR / "beat-schedule")

# -- people ----------------------------------------------------------------------------------------
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]
LOGIN_URL = "/login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login"
AXES_FAILURE_LIMIT = 5
AXES_COOLOFF_TIME = 0.25  # hours
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_CLIENT_IP_CALLABLE = "cds.audit.callers.lock_address"
AXES_LOCKOUT_TEMPLATE = "web/locked.html"
AXES_RESET_ON_SUCCESS = True
AXES_ENABLE_ADMIN = False
_check_oidc()
OIDC_ISSUER = ENV.oidc_issuer.rstrip("/")
OIDC_CLIENT_ID, OIDC_CLIENT_SECRET = ENV.oidc_client_id, ENV.oidc_client_secret
OIDC_CLIENT_AUTH, OIDC_SCOPES = ENV.oidc_client_auth, ENV.oidc_scopes
OIDC_ROLE_CLAIM, OIDC_UNIT_CLAIM = ENV.oidc_role_claim, ENV.oidc_unit_claim
OIDC_ROLES = _oidc_roles(ENV.oidc_roles)
OIDC_ALGORITHMS, OIDC_ORIGINS = _listed(ENV.oidc_algorithms), _listed(ENV.oidc_origins)
SESSION_COOKIE_AGE = ENV.session_idle_minutes * 60
SESSION_SAVE_EVERY_REQUEST = True
SESSION_ABSOLUTE_AGE = ENV.session_hours * 3600
# not in a cookie of their own, whose name is Django's (INTEROP 29)
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = True
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]

# -- the browser -----------------------------------------------------------------------------------
# "no-referrer" makes browsers send "Origin: null" with every form, which Django's CSRF check refuses.
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"  # for browsers that do not know frame-ancestors; the others obey that instead
FRAME_ANCESTORS = [origin.strip() for origin in ENV.frame_ancestors.split(",") if origin.strip()]
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF, NONCE],
        "style-src": [SELF],
        "img-src": [SELF],
        "font-src": [SELF],
        "connect-src": [SELF],
        # signing out leads on to the provider, and browsers count that redirect as part of the form
        "form-action": [SELF, *_origins_of(OIDC_ISSUER, *OIDC_ORIGINS)],
        "base-uri": [NONE],
        "frame-ancestors": [SELF, *FRAME_ANCESTORS],
    }
}
if PRODUCTION:
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^livez$", r"^readyz$", r"^metrics$"]
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-session", "__Host-csrf"
    if ENV.tls_at_proxy:
        SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = not PRODUCTION
DATA_UPLOAD_MAX_MEMORY_SIZE = 5 * 1024 * 1024

LANGUAGE_CODE = "en"
USE_I18N = True
USE_TZ = True
TIME_ZONE = ENV.tz

# -- the product -----------------------------------------------------------------------------------
REGULATORY_LABEL = ENV.regulatory_label
HOOKS_OPEN = ENV.hooks_open and urlsplit(PUBLIC_URL).hostname in {"127.0.0.1", "localhost", "::1"}
HOOKS_WAIT_S = ENV.hooks_wait_ms / 1000
HOOKS_BUDGET_S = ENV.hooks_budget_ms / 1000
HOOKS_FEEDBACK_S = ENV.hooks_feedback_budget_ms / 1000
HOOKS_OFFERED = tuple(_some_of("HOOKS_OFFERED", ENV.hooks_offered, HOOKS))
HOOKS_CALLS_PER_MINUTE = ENV.hooks_calls_per_minute
HOOKS_ALERT_AT, HOOKS_CRITICAL_AT = _categories(ENV.hooks_alert_at), _categories(ENV.hooks_critical_at)
HOOKS_QUIET_S = ENV.hooks_quiet_hours * 3600
HOOKS_QUIET_ROLES = _quiet_roles(ENV.hooks_quiet_roles)
HOOKS_REDIS_URL = (
    ENV.redis_url
)  # where spent tokens and counts are shared; "": the database, and each process
HOOKS_MIDDLEWARE = [  # of hook calls under gunicorn: no cookie, no session, no page
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "cds.hooks.serving.CallLog",
    "django.middleware.common.CommonMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]
RISK_POLICIES = ENV.risk_policies.resolve() if ENV.risk_policies else None
SCORE_INTERVAL_S = ENV.score_interval_minutes * 60
FAIRNESS_AUROC_GAP = ENV.fairness_auroc_gap
FAIRNESS_CALIBRATION_GAP = ENV.fairness_calibration_gap
IMAGE_BACKBONE = ENV.image_backbone
IMAGE_WEIGHTS = ENV.image_weights.resolve() if ENV.image_weights else None
TEXT_BACKBONE = ENV.text_backbone
TEXT_STORE = (ENV.text_store or DATA_DIR / "text").resolve()
ENCODER_RUNTIME = ENV.encoder_runtime
ENCODER_THREADS = ENV.encoder_threads
ENCODER_STORE = DATA_DIR / "encoders"  # ONNX copies, made by the worker that first needs one

from cds.logs import logging_config  # noqa: E402  (needs nothing but the two values it is given)

LOGGING = logging_config(ENV.log_level, as_json=ENV.log_json)
