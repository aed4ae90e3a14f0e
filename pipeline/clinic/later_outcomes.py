"""Outcomes that are known later: read from the node's [outcomes], and joined with answers by the node's own rules.

The clinic keeps no copy: the records are read again when one of their files, the settings or the day has changed.
Patients who withdrew from learning are left out.
"""

import logging
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from threading import Lock

from models.refusal import Refusal
from pipeline.clinic.pcr_day import Timing, timing
from pipeline.clinic.records import Answer, Patient
from pipeline.clinic.settings import Clinic
from pipeline.imaging.discovery import fingerprint
from pipeline.records.join import JoinRules, label_severe
from pipeline.records.laboratory.results import files_of
from pipeline.records.laboratory.times import Clock
from pipeline.records.outcomes import Outcome, read_outcomes
from pipeline.records.reasons import TABLE_FILE
from pipeline.site.folder import Site
from pipeline.site.reasons import NOTHING_FETCHED
from pipeline.site.withdrawn import Withdrawn

log = logging.getLogger("fedthorax.clinic")
_reading = Lock()
_read: dict[Path, tuple[tuple[str, str, date], dict[str, Outcome] | Refusal]] = {}  # by site folder


@dataclass(frozen=True)
class LaterOutcomes:
    """The outcomes of a hospital's patients. `site`: None if the clinic has no node with outcomes.

    `refusal`: why the records cannot be used; then no outcome is known.
    """

    site: Site | None = None
    by_patient: dict[str, Outcome] = field(default_factory=dict)
    refusal: Refusal | None = None

    @property
    def rules(self) -> JoinRules:
        return self.site.settings.join if self.site else JoinRules()

    def acquired(self, answer: Answer) -> datetime | None:
        """Return the time of the scan at the hospital, None if it is unknown."""
        clock = Clock.of(self.site.settings.site.time_zone if self.site else "")
        return answer.acquired_at and clock.of_scan(answer.acquired_at)

    def pcr_timing(self, answer: Answer) -> Timing | None:
        """Compare the day of the answer's PCR result with the scan's; None without a result."""
        at = self.acquired(answer)
        return timing(answer.pcr, at.date() if at else None, self.rules) if answer.pcr else None

    def pcr_positive(self, answer: Answer) -> bool | None:
        """Return the PCR result of the scan; None if it is unknown, not decisive, or of a day outside its window."""
        when = self.pcr_timing(answer)
        if answer.pcr is None or when is None or when.is_outside:
            return None
        return {"positive": True, "negative": False}.get(answer.pcr.result)

    def is_ours(self, patient: Patient | None) -> bool:
        """Whether the patient has an identifier of this hospital and did not withdraw."""
        if self.site is None or patient is None or not patient.id:
            return False
        ours = self.site.settings.site.issuer
        if ours and patient.issuer not in ("", ours):
            return False
        return self._withdrawn is None or not self._withdrawn.names(patient.id)

    @cached_property
    def _withdrawn(self) -> Withdrawn | None:
        return Withdrawn(self.site) if self.site else None

    def severe(self, answer: Answer) -> bool | None:
        """Return whether the course after the scan was severe; None if that is not known (yet)."""
        patient, at = answer.patient, self.acquired(answer)
        if patient is None or at is None or patient.id not in self.by_patient or not self.is_ours(patient):
            return None
        return label_severe(self.by_patient[patient.id], at, self.rules).severe


def join_rules(clinic: Clinic) -> LaterOutcomes:
    """Return the node's windows and clock, without outcomes; the defaults if its settings cannot be read."""
    try:
        return LaterOutcomes(clinic.node)
    except (Refusal, OSError):
        return LaterOutcomes()


def later_outcomes(clinic: Clinic) -> LaterOutcomes:
    """Read the outcomes. Records that cannot be used are no error of the caller: see `LaterOutcomes.refusal`."""
    site = None
    try:
        site = clinic.node
        if site is None or site.settings.outcomes is None:
            return LaterOutcomes()
        with _reading:  # reading can take long: only once
            found = _current(site, date.today())
        if isinstance(found, Refusal):
            raise found.with_traceback(None)
    except Refusal as refusal:
        log.warning("the outcomes cannot be read: %s", refusal.code)
        return LaterOutcomes(site, refusal=refusal)
    except OSError as error:
        log.warning("the outcomes cannot be read: %s", TABLE_FILE.code)
        return LaterOutcomes(site, refusal=Refusal(TABLE_FILE, private=str(error), table="outcome"))
    return LaterOutcomes(site, found)


def _current(site: Site, today: date) -> dict[str, Outcome] | Refusal:
    """Return the outcomes by patient, or why they cannot be used. Raises OSError."""
    table = site.settings.outcomes
    assert table is not None and table.file is not None  # SiteSettings ensures it
    if not table.file.exists() and table.file in (site.fhir_store, site.omop_events):
        return Refusal(NOTHING_FETCHED)
    files = fingerprint([(str(path), path) for path in files_of(table.file)])
    key = (files, site.settings.model_dump_json(include={"site", "outcomes", "join"}), today)
    if site.folder not in _read or _read[site.folder][0] != key:
        _read[site.folder] = key, _outcomes(site, today)
    return _read[site.folder][1]


def _outcomes(site: Site, today: date) -> dict[str, Outcome] | Refusal:
    settings = site.settings
    assert settings.outcomes is not None
    named = {"time_zone": settings.site.time_zone, "issuer": settings.site.issuer}
    try:
        found, _ = read_outcomes(settings.outcomes, **named, needed=settings.join.severe_events, today=today)
    except Refusal as refusal:
        return refusal
    return found
