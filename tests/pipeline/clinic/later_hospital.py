"""A clinic with a node whose records tell later what became of the patients. All data are synthetic."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.clinic.records import Answer, Correction, Patient, PcrResult
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.settings import SETTINGS, Clinic
from pipeline.site.folder import Site, init_site
from tests.pipeline.clinic.test_store import SCORE, answer_to, queued, taken

MODEL = "b" * 64
SCAN = datetime(2021, 3, 4, 10, 11, 12)
SITE = """
[site]
name = "synthetic"
issuer = "WARD"
time_zone = "Europe/Berlin"
[laboratory]
file = "laboratory.csv"
"""
CSV = '[outcomes]\nfile = "outcomes.csv"\n'


def day(days: int | None) -> str:
    """A day relative to the scan, "" for none."""
    return "" if days is None else (SCAN + timedelta(days=days)).date().isoformat()


@dataclass
class LaterHospital:
    """The clinic and its node."""

    clinic: Clinic
    site: Site

    @classmethod
    def make(cls, folder: Path, *, outcomes: str = CSV, export: bool = True) -> "LaterHospital":
        site = init_site(folder / "site", SITE + outcomes)
        (folder / "clinic").mkdir()
        labels = f"[labels]\nexport = {str(export).lower()}\n"
        (folder / "clinic" / SETTINGS).write_text(f'[node]\nfolder = "{site.folder}"\n{labels}')
        clinic = Clinic.open(folder / "clinic")
        with clinic.store() as store:
            store.models.add(MODEL, "trial", signed_by=None, by="test")
            store.models.set_live(MODEL, by="test")
        return cls(clinic, site)

    def know(self, *rows: tuple[str, int | None, int | None, int | None]) -> None:
        """Write the outcome file: patient, days of intubation, death and end of follow-up relative to the scan."""
        lines = [f"{patient},{day(intubated)},{day(died)},{day(until)}" for patient, intubated, died, until in rows]
        path = self.site.folder / "outcomes.csv"
        path.write_text("\n".join(["patient_id,intubated,died,followed_until", *lines]) + "\n")

    def scored(
        self,
        patient: str = "P1",
        severe: float = 0.25,
        *,
        pcr: PcrResult | None = "positive",
        issuer: str = "WARD",
        days: int = 0,
        **score: Any,
    ) -> Answer:
        """Store an answer to a scan so many days after SCAN."""
        with self.clinic.store() as store:
            queued(store)
            job = taken(store)
            made = answer_to(store, job, patient=Patient(patient, issuer, "CANARY^SYNTHETIC", "F", 63.0))
            probability = {"severe": severe, "pcr_positive": 0.5}
            made = replace(
                made,
                score={**SCORE, "probability": probability, **score},
                model_sha256=MODEL,
                acquired_at=SCAN + timedelta(days=days),
            )
            store.answers.add(job, made)
            if pcr:
                store.answers.set_pcr(made.id, pcr, None, "entered", "test")
            return store.answers.get(made.id)

    def decided(self, answer: Answer, verdict: Any, reason: Any = None, **levels: str) -> None:
        with self.clinic.store() as store:
            seen = store.answers.get(answer.id)
            proposal = Proposal(verdict, seen.revision, reason, correction=Correction(levels=levels))
            decide(store, answer.id, proposal, by="reader", person="Leser^Anna")
