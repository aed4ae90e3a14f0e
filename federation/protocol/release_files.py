"""The files of a release from which a study may begin: at a site, and in a run's folder. Light: without torch."""

import hashlib
from pathlib import Path

from pipeline.system.atomic_files import write_durably

BEGINS_FROM = "begins-from"  # the folder of a site or of a run with such releases
FILES = ("model.safetensors", "model.json")  # of a release; the second one last, for it names the first


def copy_release(release: Path, folder: Path) -> str:
    """Copy what is needed of a release into `folder`, under its name, which is returned. Raises OSError."""
    weights, description = ((release / name).read_bytes() for name in FILES)
    sha256 = hashlib.sha256(description).hexdigest()
    (folder / sha256).mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in zip(FILES, (weights, description), strict=True):
        write_durably(folder / sha256 / name, content)
    return sha256
