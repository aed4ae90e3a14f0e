"""Pictures of a scan without a score: they show causes such as a head, an upside-down thorax or much metal."""

import logging
import shutil
from pathlib import Path

from pipeline.clinic.pictures import write_scan
from pipeline.clinic.records import Job
from pipeline.imaging.volume import Volume
from pipeline.system.atomic_files import move_durably

log = logging.getLogger("fedthorax.clinic")


def keep_to_be_seen(volume: Volume, job: Job, work: Path) -> None:
    """Write the scan into `job.pictures`, completely or not at all; never raises, because the pictures are optional.

    `volume`: as it was read. `work`: a folder for temporary files on the same disk.
    """
    folder = work / job.id
    try:
        folder.mkdir(mode=0o700)
        write_scan(volume, folder)
        shutil.rmtree(job.pictures, ignore_errors=True)  # left by a killed attempt
        move_durably(folder, job.pictures)
    except Exception as error:  # disk or memory may be full
        shutil.rmtree(folder, ignore_errors=True)
        log.warning("the pictures of a scan without a score cannot be written: %s", type(error).__name__)
