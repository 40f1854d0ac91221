"""The site's own table of local codes (CODE_MAP), used by every way in: read again when it changes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, register

import ehr
from cds.errors import Unavailable

NONE = ehr.CodeMap()


def site_map() -> ehr.CodeMap:
    """The table of CODE_MAP; an empty one when there is none.

    raises  Unavailable when it cannot be used: records read without it would be read wrongly
    """
    path: Path | None = settings.CODE_MAP
    if path is None:
        return NONE
    try:
        found = path.stat()
        return _read(path, found.st_mtime_ns, found.st_size)
    except (OSError, ehr.BadCodeMap) as error:
        raise Unavailable(f"CODE_MAP: {error}; `manage.py code_map check` tells more") from error


@lru_cache(maxsize=2)
def _read(path: Path, changed_ns: int, size: int) -> ehr.CodeMap:
    return ehr.read_code_map(path.read_bytes())


@register
def check_site_map(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """Servers and workers do not start with a table that cannot be used."""
    try:
        site_map()
    except Unavailable as error:
        return [Error(str(error), id="tessera.E001")]
    return []
