"""Logs: one JSON object a line, one correlation id from the web request through the task to the model.

Nothing that identifies a patient is ever logged: ids of rows, counts and durations only.
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _is_news(record: logging.LogRecord) -> bool:
    """An event stream that ends because somebody left the page is no warning."""
    said = record.msg.get("event") if isinstance(record.msg, dict) else record.msg
    return said != "streaming_cancelled"


def without_query(record: logging.LogRecord) -> bool:
    """Leave the query string out of a line of uvicorn's access log.

    A sign-in's code and state and an EHR's launch handle stand there (OAuth 2.0, SMART App Launch). The
    access_log_format of gunicorn does not reach these lines: its uvicorn worker writes them.
    """
    if isinstance(record.args, tuple):
        record.args = tuple(one.partition("?")[0] if isinstance(one, str) else one for one in record.args)
    return True


def logging_config(level: str, *, as_json: bool) -> dict[str, Any]:
    """Build Django's LOGGING, and set up structlog to write through it."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: Any = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": _SHARED,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    renderer,
                ],
            }
        },
        "filters": {"pages_left": {"()": lambda: _is_news}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "httpx": {"level": "WARNING"},
            "pydicom": {"level": "ERROR"},
            "pynetdicom": {"level": "WARNING"},
            "django_structlog": {"level": "WARNING"},
            "django_structlog.middlewares.request": {"filters": ["pages_left"]},
            "axes": {"level": "WARNING"},
        },
    }
