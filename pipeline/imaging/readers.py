"""Scans in whatever form they come: DICOM series, NIfTI and MetaImage files, found and read alike."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.imaging.discovery import Series, find_series
from pipeline.imaging.nifti_reader import find_volume_files, is_volume_file, read_volume_file
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from pipeline.system.findings import Finding


def find_scans(
    root: Path | Sequence[Path], soon: Callable[[Series], None] | None = None
) -> tuple[list[Series], list[Finding]]:
    """Find all scans among files and folders (searched to any depth), and the files that could not be read.

    Findings: those of `find_series` and `find_volume_files`. `soon`: as `find_series` takes it, of DICOM series alone.
    """
    given = [root] if isinstance(root, Path) else list(root)
    # A folder may hold both; a file that was named is one or the other.
    series, findings = find_series([path for path in given if path.is_dir() or not is_volume_file(path.name)], soon)
    volumes, faulty = find_volume_files([path for path in given if path.is_dir() or is_volume_file(path.name)])
    return series + volumes, findings + faulty


def read_scan(series: Series) -> Volume:
    """Read one scan. Raises `Refusal` as `read_series` and `read_volume_file` do."""
    first = series.files[0]
    return read_volume_file(first) if is_volume_file(first.name) else read_series(series)
