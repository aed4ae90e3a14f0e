"""Copy settings and secrets into a folder so that only the user who runs this may read them.

    python -I -m federation.system.private_copy FROM TO [FROM TO ...]

FROM is a file or a folder. Kubernetes mounts secrets as files that a group may read, and fedthorax refuses passwords
that others than their owner may read. So a container of the pod copies them before the service starts.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.system.atomic_files import write_atomically


def copy_private(source: Path, target: Path) -> None:
    """Copy a file to `target`, or the files of a folder into the folder `target`. Raises OSError.

    The links and hidden files by which Kubernetes replaces a mounted folder are not copied.
    """
    if source.is_dir():
        target.mkdir(mode=0o700, exist_ok=True)
        for file in sorted(source.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                copy_private(file, target / file.name)
        return
    write_atomically(target, source.read_bytes(), mode=0o600)


def main(arguments: Sequence[str]) -> None:
    """Copy each pair. Raises OSError."""
    for source, target in zip(arguments[::2], arguments[1::2], strict=True):
        copy_private(Path(source), Path(target))


if __name__ == "__main__":
    main(sys.argv[1:])
