"""Configuration, from the environment only. `.env.example` lists every variable with its meaning.

With nothing set, everything runs embedded under ./var: SQLite, a Valkey server started by `manage.py demo`,
loopback only. Set DATABASE_URL and REDIS_URL and the same code runs on PostgreSQL and Redis.
"""

from __future__ import annotations

import json
import secrets
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from cds.environment import (
    HOOKS,
    Environment,
    categories,
    listed,
    networks,
    oidc_roles,
    quiet_roles,
    some_of,
)

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
    addresses += [("OIDC_ORIGINS", one) for one in listed(ENV.oidc_origins)]
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
    if not listed(ENV.oidc_algorithms) or set(listed(ENV.oidc_algorithms)) - known:
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
TRUSTED_PROXIES = networks(ENV.trusted_proxies) if PRODUCTION and ENV.tls_at_proxy else ()

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
        # For pages, and for the ten threads of `cds.hooks.serving`, which keep theirs.
        DATABASES["default"]["OPTIONS"].setdefault("pool", {"min_size": 1, "max_size": 18, "timeout": 5})
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
AXES_HANDLER = "cds.launch.locking.PasswordLock"
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # 15 minutes from the fifth try, whoever tries again
AXES_ENABLE_ADMIN = False
_check_oidc()
OIDC_ISSUER = ENV.oidc_issuer.rstrip("/")
OIDC_CLIENT_ID, OIDC_CLIENT_SECRET = ENV.oidc_client_id, ENV.oidc_client_secret
OIDC_CLIENT_AUTH, OIDC_SCOPES = ENV.oidc_client_auth, ENV.oidc_scopes
OIDC_ROLE_CLAIM, OIDC_UNIT_CLAIM = ENV.oidc_role_claim, ENV.oidc_unit_claim
OIDC_ROLES = oidc_roles(ENV.oidc_roles)
OIDC_ALGORITHMS, OIDC_ORIGINS = listed(ENV.oidc_algorithms), listed(ENV.oidc_origins)
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
HOOKS_OFFERED = tuple(some_of("HOOKS_OFFERED", ENV.hooks_offered, HOOKS))
HOOKS_CALLS_PER_MINUTE = ENV.hooks_calls_per_minute
HOOKS_ALERT_AT, HOOKS_CRITICAL_AT = categories(ENV.hooks_alert_at), categories(ENV.hooks_critical_at)
HOOKS_QUIET_S = ENV.hooks_quiet_hours * 3600
HOOKS_QUIET_ROLES = quiet_roles(ENV.hooks_quiet_roles)
HOOKS_REDIS_URL = (
    ENV.redis_url
)  # where spent tokens and counts are shared; "": the database, and each process
HOOKS_MIDDLEWARE = [  # of hook calls under gunicorn: no cookie, no session, no page
    "django.middleware.security.SecurityMiddleware",
    "cds.hooks.serving.CallLog",
    "django.middleware.common.CommonMiddleware",
    "cds.hooks.serving.CallMetrics",
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
