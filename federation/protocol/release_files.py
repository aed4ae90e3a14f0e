"""The files of what a hospital approves by name: releases that a study may start from, and frozen encoders.

Each is a folder with weights and a description, whose SHA-256 is the name. Works without torch.
"""

import hashlib
from pathlib import Path

from pipeline.system.atomic_files import write_durably

BEGINS_FROM = "begins-from"  # the folder of such releases at a site or in a run
FILES = ("model.safetensors", "model.json")  # the description comes last: it names the weights
ENCODERS = "encoders"  # the folder of approved encoders at a site
ENCODER_FILES = ("encoder.safetensors", "encoder.json")


def copy_release(release: Path, folder: Path, files: tuple[str, str] = FILES) -> str:
    """Copy weights and description into `folder`, under the description's SHA-256, and return that. Raises OSError."""
    weights, description = ((release / name).read_bytes() for name in files)
    sha256 = hashlib.sha256(description).hexdigest()
    (folder / sha256).mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, content in zip(files, (weights, description), strict=True):
        write_durably(folder / sha256 / name, content)
    return sha256
