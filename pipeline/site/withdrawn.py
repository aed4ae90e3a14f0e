"""The patients who withdrew: their data are refused at every later ingest.

SITE_DIR/withdrawn.txt   one keyed hash a line, sorted; neither the identifier nor the pseudonym can be read from it
"""

from collections.abc import Iterable

from pipeline.site.folder import Site
from pipeline.system.atomic_files import write_durably

FILE = "withdrawn.txt"


class Withdrawn:
    """The withdrawn patients of a site, as they are on the disk now. Raises OSError if the list cannot be read."""

    def __init__(self, site: Site) -> None:
        self._site, self._file = site, site.folder / FILE
        try:
            self._marks = set(self._file.read_text().split())
        except FileNotFoundError:
            self._marks = set()

    def __contains__(self, pseudonym: str) -> bool:
        return bool(self._marks) and self._mark(pseudonym) in self._marks

    def names(self, patient_id: str) -> bool:
        """Whether the patient with this identifier has withdrawn. Raises Refusal E_SITE_KEY."""
        return bool(self._marks) and self._site.pseudonym(patient_id) in self

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, pseudonyms: Iterable[str]) -> int:
        """Write patients to the list, durably; return how many of them are new in it. Raises OSError."""
        new = {self._mark(pseudonym) for pseudonym in pseudonyms} - self._marks
        self._marks |= new
        write_durably(self._file, "".join(f"{mark}\n" for mark in sorted(self._marks)).encode())
        return len(new)

    def _mark(self, pseudonym: str) -> str:
        return self._site.keyed("withdrawn", pseudonym)
