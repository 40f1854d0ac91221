"""The conversions of every day, worked out beforehand: the unit library takes seconds to load.

`conversions.tsv` holds, for each quantity and each unit in which hospitals send it, the slope and the offset
to the canonical unit, as `ehr.units` finds them by `ucumvert` on `pint`; a test compares the rows. What is
not in it is asked of the library, as ever. After a change of `ehr.quantities`, write it anew:
`python -c "from ehr import conversions; conversions.write()"`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("conversions.tsv")
_UNITS = """
mol/L mmol/L umol/L nmol/L pmol/L mmol/mol mmol/kg mol/kg mosm/kg eq/L meq/L
g/L mg/L ug/L ng/L g/dL mg/dL ug/dL ng/dL g/mL mg/mL ug/mL ng/mL pg/mL mg/g ug/mg g/g
U/L kU/L mU/L U/mL mU/mL ukat/L nkat/L [IU]/L [IU]/mL m[IU]/L m[IU]/mL u[IU]/mL
10*3/uL 10*6/uL 10*9/L 10*12/L 10*6/L 10*3/mL /uL /mL /L
mm[Hg] kPa Pa mbar cm[H2O] Cel [degF] K % 1 /min /s /h Hz mm/h s ms min h us
kg g [lb_av] [oz_av] m cm mm [in_i] [ft_i] kg/m2 m2 cm2 L dL mL uL fL pg ng
L/min mL/min L/s mL/s L/h mL/min/{1.73_m2} mL/s/{1.73_m2}
"""

Row = tuple[str, str, str]  # key of a quantity, unit sent, canonical unit; both without annotations


@cache
def conversions() -> dict[Row, tuple[float, float]]:
    """(quantity, unit sent, canonical unit) → (slope, offset)."""
    rows = (line.split("\t") for line in TABLE.read_text().splitlines())
    return {(key, unit, target): (float(slope), float(offset)) for key, unit, target, slope, offset in rows}


def work_out() -> dict[Row, tuple[float, float]]:
    """The table anew, by the unit library."""
    from ehr import units
    from ehr.errors import BadUnit
    from ehr.quantities import QUANTITIES

    sent = {units.without_annotations(unit) for unit in (*_UNITS.split(), *units.VENDOR_UNITS.values())}
    found: dict[Row, tuple[float, float]] = {}
    for quantity in QUANTITIES.values():
        target = units.without_annotations(quantity.unit)
        for unit in sorted(sent - {target}) if target not in units.PLAIN_NUMBERS else ():
            try:
                found[quantity.key, unit, target] = units.by_library(quantity, unit, target, unit)
            except BadUnit:
                continue
    return found


def write() -> None:
    """Write the table anew; half a minute."""
    lines = ("\t".join((*row, *map(repr, ends))) for row, ends in sorted(work_out().items()))
    TABLE.write_text("\n".join(lines) + "\n")
