"""The model of a version, loaded once per process. Worker only (torch)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from django.conf import settings

import fusion
from cds.features import encoding
from cds.registry import queries
from cds.registry.models import ModelVersion


def get_bundle(version: ModelVersion) -> fusion.Bundle:
    """The model of a version, loaded once per process; its digest is checked at every load."""
    text = str(version.metadata.get("config", {}).get("text_backbone", ""))
    folder = str(queries.bundle_folder(version))
    return _load(folder, version.digest, settings.IMAGE_WEIGHTS, encoding.find_text_folder(text))


@lru_cache(maxsize=4)
def _load(folder: str, digest: str, weights: Path | None, text: Path | None) -> fusion.Bundle:
    return fusion.Bundle.load(Path(folder), digest=digest, image_weights=weights, text_backbone=text)
