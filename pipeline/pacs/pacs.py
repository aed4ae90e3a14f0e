"""What a PACS can be asked, whichever protocol it speaks; `open_pacs` opens the one that site.toml names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pipeline.site import Site


@dataclass(frozen=True)
class StudyQuery:
    """Which studies to look for: days inclusive, None for any; no accession number or body part at all means any."""

    modality: str = "CT"
    from_date: date | None = None
    to_date: date | None = None
    accessions: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()  # in capitals; of the series, not of the study

    def misses(self, series: "RemoteSeries") -> Literal["", "accession", "modality", "body part"]:
        """What keeps a series of such a study from being wanted; '' if nothing does.

        The accession number is checked too: a PACS that cannot filter by it answers with everything.
        """
        if self.accessions and series.accession not in self.accessions:
            return "accession"
        if series.modality != self.modality:
            return "modality"
        return "body part" if self.body_parts and series.body_part.upper() not in self.body_parts else ""


@dataclass(frozen=True)
class RemoteSeries:
    """One series as the PACS describes it; '' where it does not say. For this process alone: it names the patient."""

    patient_id: str
    issuer: str
    accession: str
    study_uid: str
    series_uid: str
    modality: str
    body_part: str
    images: int | None


class Pacs(Protocol):
    """A connection to a PACS.

    Every method raises Refusal: E_PACS_SILENT (no answer, or it broke off: worth another try), E_PACS_AUTH,
    E_PACS_UNTRUSTED, E_PACS_PROXY, E_PACS_ANSWER (an answer that was not foreseen).
    """

    def echo(self) -> None:
        """Return if the PACS answers and lets us in."""

    def find(self, query: StudyQuery) -> list[RemoteSeries]:
        """All series, of whatever modality and body part, of the studies that match; each once."""

    def images(self, series: RemoteSeries) -> set[str]:
        """SOP instance UIDs of the series."""

    def fetch(self, series: RemoteSeries, wanted: set[str] | None) -> Iterator[bytes]:
        """Complete files (DICOM PS3.10), each as soon as it is here; never a whole series in memory.

        `wanted`: SOP instance UIDs, or None for the whole series. Files in no order; the PACS may leave some out.
        The pixels come as they are stored, without another compression. The iterator can be closed at any time.
        """


@contextmanager
def open_pacs(site: "Site") -> Iterator[Pacs]:
    """Connect to the PACS of site.toml, which must have a table [pacs].

    Raises Refusal E_PACS_FILE where a password, token, key or certificate cannot be used, and those of `Pacs`.
    """
    table = site.settings.pacs
    assert table is not None
    if table.protocol == "dicomweb":
        from pipeline.pacs.dicomweb import DicomWebPacs

        assert table.dicomweb is not None
        with DicomWebPacs(table.dicomweb, site.folder) as dicomweb:
            yield dicomweb
    else:
        from pipeline.pacs.dimse import DimsePacs

        assert table.dimse is not None
        with DimsePacs(table.dimse, site.folder) as dimse:
            yield dimse
