"""The files of a release that a study may start from, at a site and in a run's folder. Works without torch."""

import hashlib
from pathlib import Path

from pipeline.system.atomic_files import write_durably

BEGINS_FROM = "begins-from"  # the folder of such releases at a site or in a run
FILES = ("model.safetensors", "model.json")  # the description comes last: it names the weights


def copy_release(release: Path, folder: Path) -> str:
    """Copy a release's files into `folder`, under its SHA-256, and return that. Raises OSError."""
    weights, description = ((release / name).read_bytes() for name in FILES)
    sha256 = hashlib.sha256(description).hexdigest()
    (folder / sha256).mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in zip(FILES, (weights, description), strict=True):
        write_durably(folder / sha256 / name, content)
    return sha256
