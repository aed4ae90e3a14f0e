"""The files of one series at the site, under keyed names.

Files get their final names only when complete, and series get into the reader's folder only when complete: a kill at
any moment leaves no incomplete data there. Nothing waits for the disk (fsync), which would halve the rate of a pull.
After a power cut some files may therefore be truncated; their size reveals it, and they are fetched again.
"""

import shutil
import time
from collections.abc import Collection
from pathlib import Path

from pipeline.pacs.deidentify import series_folder
from pipeline.pacs.pull_log import Journal
from pipeline.pacs.queries import RemoteSeries
from pipeline.site.folder import Site
from pipeline.system.atomic_files import write_atomically


def pulled_folder(site: Site) -> Path:
    """Return the folder of the complete series. Without [pacs] in site.toml, `ct_folder` is the hospital's own."""
    return site.folder / "pacs"


def partial_folder(site: Site) -> Path:
    """Return the folder of the incomplete series."""
    return site.folder / "pull" / "partial"


def unlisted_series(site: Site, journal: Journal, pseudonyms: Collection[str]) -> list[str]:
    """Return the keys of these patients' series that are stored and not in the journal, which may have been lost."""
    folders = [*pulled_folder(site).glob("*"), *partial_folder(site).glob("*")]
    return [each.name for each in folders if journal.entry(each.name) is None and _owner(each) in pseudonyms]


def _owner(folder: Path) -> str:
    """Return the pseudonym in the first image that can be read."""
    from pydicom import dcmread

    for path in folder.glob("*"):
        try:
            return str(dcmread(path, force=True, specific_tags=["PatientID"]).get("PatientID", ""))
        except Exception:  # noqa: S112 - a truncated file of a fetch that was killed; pydicom raises many types
            continue
    return ""


class SeriesStore:
    """The files of one series of a site.

    `key`: keyed hash of the series. `pseudonym`: of its patient, '' if there is none.
    """

    def __init__(self, site: Site, key: str, pseudonym: str) -> None:
        self.key, self.pseudonym = key, pseudonym
        self._partial = partial_folder(site) / key
        self._whole = pulled_folder(site) / key

    @classmethod
    def of(cls, site: Site, series: RemoteSeries) -> "SeriesStore":
        """Return the store of a series that the PACS has."""
        pseudonym = site.pseudonym(series.patient_id) if series.patient_id else ""
        return cls(site, series_folder(site, series.study_uid, series.series_uid), pseudonym)

    def begin(self) -> None:
        """Create the folder for new images; remove files that a kill or a power cut may have truncated."""
        self._partial.mkdir(parents=True, exist_ok=True)
        started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for path in self._partial.iterdir():
            if path.suffix != ".dcm" or path.stat().st_mtime < started:
                path.unlink()

    def images(self) -> set[str]:
        """Return the names of the stored images."""
        return {path.name for folder in (self._partial, self._whole) for path in folder.glob("*.dcm")}

    def write(self, name: str, content: bytes) -> None:
        """Write one image to the folder of the incomplete series."""
        write_atomically(self._partial / name, content)

    def finish(self) -> None:
        """Move the images to the reader's folder, also if earlier images of the series are already there."""
        if self._whole.exists():
            for path in self._partial.glob("*.dcm"):
                path.replace(self._whole / path.name)
            shutil.rmtree(self._partial, ignore_errors=True)
        elif self._partial.exists():
            self._partial.replace(self._whole)

    def size(self) -> int:
        """Return the total bytes of the images in the reader's folder."""
        return sum(path.stat().st_size for path in self._whole.glob("*.dcm"))

    def clear(self) -> None:
        """Delete all files of the series."""
        for folder in (self._partial, self._whole):
            shutil.rmtree(folder, ignore_errors=True)
