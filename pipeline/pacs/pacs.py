"""The interface of a PACS for all protocols; `open_pacs` opens the PACS of site.toml."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.pacs.queries import RemoteSeries, StudyQuery

if TYPE_CHECKING:
    from pipeline.site.folder import Site
    from pipeline.site.pacs_settings import PacsTable


class Pacs(Protocol):
    """A connection to a PACS.

    Every method raises Refusal: those of `reasons.MAY_PASS` (no or an incomplete response: try again), E_PACS_AUTH,
    E_PACS_UNTRUSTED, E_PACS_PROXY, E_PACS_ANSWER (an unexpected response).
    """

    def echo(self) -> None:
        """Return if the PACS responds and grants access."""

    def find(self, query: StudyQuery) -> list[RemoteSeries]:
        """Return all series, of any modality and body part, of the matching studies, each once.

        Also raises Refusal E_PACS_TRUNCATED, as `images` does: the PACS does not return all results.
        """

    def image_count(self, study_uid: str, series_uid: str) -> int | None:
        """Return how many images the PACS says that the series has; None if it does not say."""

    def images(self, series: RemoteSeries) -> set[str]:
        """Return the SOP instance UIDs of the series. A list that may be cut is compared with the `series.images`."""

    def fetch(self, series: RemoteSeries, wanted: set[str] | None) -> Iterator[bytes]:
        """Yield complete files (DICOM PS3.10), each as soon as it is received, without the series in memory.

        `wanted`: SOP instance UIDs, or None for the whole series. Files have no order, and the PACS may leave some out.
        The pixels keep their stored compression. The iterator can be closed at any time.
        """

    def store(self, files: Sequence[Path]) -> list[int]:
        """Send DICOM files; return the status of each, which `pipeline.pacs.store_status.not_stored` explains.

        Also raises Refusal E_PACS_STORE and E_PACS_SERVICE: the PACS does not accept them.
        """


def open_pacs(site: "Site") -> AbstractContextManager[Pacs]:
    """Connect to the PACS of site.toml, which must have a table [pacs]. Raises as `connect` does."""
    assert site.settings.pacs is not None
    return connect(site.settings.pacs, site.folder)


@contextmanager
def connect(table: "PacsTable", folder: Path) -> Iterator[Pacs]:
    """Connect to a PACS; `folder`: the base of relative paths in the table.

    Raises Refusal E_PACS_FILE if a password, token, key or certificate cannot be used, and those of `Pacs`.
    """
    if table.protocol == "dicomweb":
        from pipeline.pacs.dicomweb import DicomWebPacs

        assert table.dicomweb is not None
        with DicomWebPacs(table.dicomweb, folder) as dicomweb:
            yield dicomweb
    else:
        from pipeline.pacs.dimse import DimsePacs

        assert table.dimse is not None
        with DimsePacs(table.dimse, folder) as dimse:
            yield dimse
