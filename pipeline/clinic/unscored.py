"""Pictures of a scan without a score, and what can be measured without a model.

The pictures show causes such as a head, an upside-down thorax or much metal. Where the scan shows a whole chest, the
lungs are outlined and measured too: this needs no model.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from models.refusal import Refusal
from pipeline.clinic.pictures import write_lungs, write_scan
from pipeline.clinic.records import Job
from pipeline.scoring.single_scan import OneScan
from pipeline.system.atomic_files import move_durably

LUNGS_JSON = "lungs.json"  # as "lungs" in a score, with its "quality"

log = logging.getLogger("fedthorax.clinic")


def keep_to_be_seen(scan: OneScan, job: Job, work: Path) -> None:
    """Write the scan into `job.pictures`, completely or not at all; never raises, because the pictures are optional.

    `scan`: as it was read. `work`: a folder for temporary files on the same disk.
    """
    folder = work / job.id
    try:
        folder.mkdir(mode=0o700)
        write_scan(scan.volume, folder)
        _measure(scan, folder)
        shutil.rmtree(job.pictures, ignore_errors=True)  # left by a killed attempt
        move_durably(folder, job.pictures)
    except Exception as error:  # disk or memory may be full
        shutil.rmtree(folder, ignore_errors=True)
        log.warning("the pictures of a scan without a score cannot be written: %s", type(error).__name__)


def _measure(scan: OneScan, folder: Path) -> None:
    """Write the lungs' outline, measures and checks, if the scan shows a whole chest."""
    from pipeline.scoring.lungs_alone import measure_lungs  # imports torch, which the main process must not

    try:
        found = measure_lungs(scan.volume, stated=scan.stated, unread=scan.unread)
    except Refusal:
        return
    write_lungs(found.burden, found.prepared, folder)
    (folder / LUNGS_JSON).write_text(json.dumps(found.to_json(), allow_nan=False), encoding="utf-8")


def lungs_of(folder: Path) -> dict[str, Any] | None:
    """Return the measures of the lungs in a folder of pictures, or None if there are none.

    Beside them, `quality`: the checks, as of a score. A folder of an earlier version has none.
    """
    try:
        content: dict[str, Any] = json.loads((folder / LUNGS_JSON).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content
