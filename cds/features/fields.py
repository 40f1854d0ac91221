"""The fields a model is told of, as `fusion.FieldSpec`s: the catalogue in the library's words."""

from __future__ import annotations

from cds import catalogue
from fusion import FieldKind, FieldSpec


def _spec(measured: catalogue.Measurement) -> FieldSpec:
    return FieldSpec(
        measured.name,
        measured.label,
        measured.unit,
        FieldKind.NUMERIC,
        measured.low,
        measured.high,
        f"{catalogue.LOINC}|{measured.loinc[0]}",
    )


FIELDS: tuple[FieldSpec, ...] = (
    *(
        FieldSpec(
            c.name,
            c.label,
            c.unit,
            FieldKind.BINARY if c.is_binary else FieldKind.NUMERIC,
            c.low,
            c.high,
            c.code,
        )
        for c in catalogue.COMPUTED
    ),
    *(_spec(measured) for measured in catalogue.LATEST),
    *(
        FieldSpec(size.name, size.label, size.unit, FieldKind.NUMERIC, size.low, size.high)
        for size in catalogue.MEASURED
    ),
    *(
        FieldSpec(
            flag.name, flag.label, "1", FieldKind.BINARY, 0, 1, f"{catalogue.SNOMED}|{min(flag.snomed)}"
        )
        for flag in catalogue.CONDITIONS
    ),
)
GENOMICS: tuple[FieldSpec, ...] = tuple(
    FieldSpec(g.name, g.label, g.unit, FieldKind.BINARY if g.genes else FieldKind.NUMERIC, g.low, g.high)
    for g in catalogue.GENOMICS
)
CHANNELS: tuple[FieldSpec, ...] = tuple(_spec(measured) for measured in catalogue.SERIES)
