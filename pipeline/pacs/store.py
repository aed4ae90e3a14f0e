"""Where the images of one series lie at the site, under keyed names.

Files come under their names whole or not at all, and so do series where they are read: a kill at any moment leaves
nothing that could be taken for more than it is. Nothing waits for the disk, which would halve the rate of a pull. A
power cut may therefore leave files short; they are noticed by their size and fetched again, for the PACS has them.
"""

import shutil
import time

from pipeline.pacs.deidentify import series_folder
from pipeline.pacs.pacs import RemoteSeries
from pipeline.site.folder import Site


class SeriesStore:
    """The files of one series.

    `key`: keyed hash of the series. `pseudonym`: of its patient, '' without one.
    """

    def __init__(self, site: Site, series: RemoteSeries) -> None:
        self.key = series_folder(site, series.study_uid, series.series_uid)
        self.pseudonym = site.pseudonym(series.patient_id) if series.patient_id else ""
        self._partial = site.folder / "pull" / "partial" / self.key
        self._whole = site.ct_folder / self.key

    def begin(self) -> None:
        """Make the place for images to come; what a kill or a power cut may have left short there is dropped."""
        self._partial.mkdir(parents=True, exist_ok=True)
        started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for path in self._partial.iterdir():
            if path.suffix != ".dcm" or path.stat().st_mtime < started:
                path.unlink()

    def images(self) -> set[str]:
        """Names of the images that are here."""
        return {path.name for folder in (self._partial, self._whole) for path in folder.glob("*.dcm")}

    def write(self, name: str, content: bytes) -> None:
        """Keep one image with those that wait for the rest of the series."""
        temporary = self._partial / f"{name}.part"
        temporary.write_bytes(content)
        temporary.replace(self._partial / name)

    def finish(self) -> None:
        """Move the images to where they are read; to those of the series that are there already, if it has grown."""
        if self._whole.exists():
            for path in self._partial.glob("*.dcm"):
                path.replace(self._whole / path.name)
            shutil.rmtree(self._partial, ignore_errors=True)
        elif self._partial.exists():
            self._partial.replace(self._whole)

    def size(self) -> int:
        """Bytes of the images where they are read."""
        return sum(path.stat().st_size for path in self._whole.glob("*.dcm"))

    def clear(self) -> None:
        """Forget the series."""
        for folder in (self._partial, self._whole):
            shutil.rmtree(folder, ignore_errors=True)
