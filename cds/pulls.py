"""How far a pull of many patients got, in a file: one that was killed goes on, and does not begin again.

A line per patient, written once that patient's record is in the database. A line that was cut by the kill
does not count: that patient is pulled once more, which changes nothing.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings

KEPT = timedelta(days=7)  # older than that, what was taken is too old to be passed over


class Pull:
    """One pull, known by its source and what is pulled.

    begun  when its first run began: changes since then are for the next pull
    done   ids of the patients that are in
    """

    def __init__(self, source: str, what: str, *, begun: datetime) -> None:
        name = hashlib.sha256(f"{source} {what}".encode()).hexdigest()[:16]
        self._path: Path = settings.DATA_DIR / "pulls" / name
        self.begun, self.done = begun, set[str]()
        lines = self._lines()
        if lines and begun - (started := datetime.fromisoformat(lines[0])) < KEPT:
            self.begun, self.done = started, set(lines[1:])
            self._path.write_text("".join(f"{line}\n" for line in lines))  # without a line that was cut
        else:
            self._path.unlink(missing_ok=True)

    def note(self, patient_id: str) -> None:
        """This patient's record is in the database."""
        if patient_id and patient_id not in self.done:
            self.done.add(patient_id)
            is_new = not self._path.exists()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(f"{self.begun.isoformat()}\n{patient_id}\n" if is_new else f"{patient_id}\n")

    def finish(self) -> None:
        """Everybody is in."""
        self._path.unlink(missing_ok=True)

    def _lines(self) -> list[str]:
        try:
            text = self._path.read_text()
        except OSError:
            return []
        return text.split("\n")[:-1]  # what follows the last line break was cut
