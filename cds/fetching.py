"""Fetching studies from an archive by DICOMweb: those we do not hold whole, and of them the pictures.

Where a Study may hold more than pictures (reports, presentation states, our own results), the archive is
asked first what it holds, so that what is not read is not fetched. One that does not tell, or not of all that
it lists, gives everything.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings

import ehr
from cds.patients import importing
from cds.patients.models import Source
from cds.studies import receiving
from cds.studies.models import Instance, StudyState
from cds.taking import Tally

MOST_FAILED = 5  # studies one after the other that an archive lists and does not give


@dataclass(frozen=True, slots=True)
class Fetching:
    """One pull from one archive, and where it counts."""

    client: ehr.DicomWebClient
    where: str
    tally: Tally
    source: Source
    now: datetime

    def files(self) -> Iterator[tuple[int, int | None, str, Path]]:
        """(how many so far, None, its name for people, the file); a file is gone when the next is asked for.

        A Study that the archive lists and does not give is set aside; after MOST_FAILED one after the other,
        and when it does not let us in any more, the pull breaks off. raises  EhrError
        """
        incoming = settings.DATA_DIR / "incoming"
        incoming.mkdir(parents=True, exist_ok=True)
        done = failed = 0
        for listed in self.client.studies():
            name = f"{self.where} study {ehr.value_of(listed, '0020000D')}"
            try:
                for content in self._study(listed, name):
                    done += 1
                    with tempfile.NamedTemporaryFile(dir=incoming, suffix=".dcm") as file:
                        file.write(content)
                        file.flush()
                        yield done, None, name, Path(file.name)
                failed = 0
            except ehr.EhrError as error:  # of this Study; the others may well come
                failed += 1
                if failed == MOST_FAILED or _is_about_us(error):
                    raise
                self._set_study_aside(name, error)

    def _study(self, listed: Mapping[str, Any], name: str) -> Iterator[bytes]:
        """The files of one Study that we do not hold whole."""
        uid, expected = ehr.value_of(listed, "0020000D"), ehr.value_of(listed, "00201208")
        complete = Instance.objects.filter(series__study__study_uid=uid)  # a killed run left it open
        held = set(
            complete.exclude(series__study__state=StudyState.ANNOUNCED).values_list("sop_uid", flat=True)
        )
        if held and expected == str(len(held)):
            self.tally.instances["duplicate"] += len(held)
            return
        contents = self._contents(listed, uid)
        pictures = [one for one in contents if one.is_picture and not one.is_ours]
        if len(pictures) == len(contents):  # of an archive that does not tell: none, and none
            yield from self.client.instances(uid)
            return
        self._pass_over(contents, name)
        if held.issuperset(one.sop_uid for one in pictures):
            self.tally.instances["duplicate"] += len(pictures)
            return
        yield from self._pictures(uid, pictures, contents)

    def _contents(self, listed: Mapping[str, Any], uid: str) -> list[ehr.ListedInstance]:
        """What the archive says a Study holds, where that may be more than pictures and it says so."""
        if not ehr.may_hold_others(ehr.values_of(listed, "00080061")):
            return []
        try:
            told = self.client.metadata(uid)
        except ehr.EhrError as error:
            status = error.status if isinstance(error, ehr.Refused) else None
            if status == 401:
                raise
            if status == 403:  # a proxy may allow less than the archive; were it all, the files would say so
                self.tally.note(
                    f"{self.where} does not let us read WADO-RS metadata, so Studies are fetched whole, with "
                    "what is not read of them: allow our account GET …/studies/{UID}/metadata"
                )
            return []  # too large, not offered, not now: its files say it all
        contents = ehr.read_contents(told)
        expected = ehr.value_of(listed, "00201208")
        named = len({one.sop_uid for one in contents})
        if len(contents) != len(told) or (expected.isdigit() and named != int(expected)):
            self.tally.note(
                f"{self.where} has Studies whose WADO-RS metadata do not name each of the instances that it "
                "counts; those are fetched whole"
            )
            return []
        return contents

    def _pass_over(self, contents: Sequence[ehr.ListedInstance], name: str) -> None:
        for one in contents:
            if one.is_ours:
                self.tally.instances["duplicate"] += 1  # known, and not kept
            elif not one.is_picture:
                self.tally.count(
                    receiving.pass_over(name, one.sop_uid, one.modality, source=self.source, now=self.now)
                )

    def _pictures(
        self, uid: str, pictures: Sequence[ehr.ListedInstance], contents: Sequence[ehr.ListedInstance]
    ) -> Iterator[bytes]:
        """Series of pictures whole, pictures of mixed Series one by one."""
        series: dict[str, list[ehr.ListedInstance]] = defaultdict(list)
        for one in pictures:
            series[one.series_uid].append(one)
        for series_uid, members in series.items():
            if len(members) == sum(one.series_uid == series_uid for one in contents):
                yield from self.client.instances(uid, series_uid)
                continue
            for one in members:
                yield from self.client.instances(uid, series_uid, one.sop_uid)

    def _set_study_aside(self, where: str, error: ehr.EhrError) -> None:
        reason = f"the archive lists this study and does not give it: {error}"
        refused = ehr.SetAside(where[:500], "DICOM", "", reason[:500])
        importing.keep_set_aside(self.source, [refused], now=self.now)
        self.tally.refuse([refused])
        if isinstance(error, ehr.Retriable):
            self.tally.interrupted = self.tally.interrupted or f"a study did not come: {error}"


def _is_about_us(error: ehr.EhrError) -> bool:
    """Whether the archive would refuse every other Study as well."""
    return isinstance(error, ehr.Refused) and error.status in (401, 403)
