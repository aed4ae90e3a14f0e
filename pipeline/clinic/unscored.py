"""A scan that got no score, kept to be seen: a head, a thorax upside down, much metal explain themselves."""

import logging
import shutil
from pathlib import Path

from pipeline.clinic.pictures import write_scan
from pipeline.clinic.records import Job
from pipeline.imaging.volume import Volume
from pipeline.system.atomic_files import sync_folder, sync_tree

log = logging.getLogger("fedthorax.clinic")


def keep_to_be_seen(volume: Volume, job: Job, work: Path) -> None:
    """Write the scan into `job.pictures`, whole or not at all. It raises nothing: the reason stands without it.

    `volume`: as it was read. `work`: a folder on the same disk, to write in.
    """
    folder = work / job.id
    try:
        folder.mkdir(mode=0o700)
        write_scan(volume, folder)
        sync_tree(folder)
        shutil.rmtree(job.pictures, ignore_errors=True)  # of an attempt that was killed
        folder.replace(job.pictures)
        sync_folder(job.pictures.parent)
    except Exception as error:  # disk or memory are full, perhaps, as the reason says then
        shutil.rmtree(folder, ignore_errors=True)
        log.warning("a scan without a score cannot be shown: %s", type(error).__name__)
