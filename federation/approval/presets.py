"""The release's own studies: study.toml's defaults, the presets and the demo, by name.

Reading them takes torch, for a study names its network. The gateway asks a process for their digests, once for each
release:

    python -m federation.approval.presets     digests and names in JSON
"""

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from configs import preset_files
from federation.approval import reasons
from federation.approval.studies import study_digest
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.system.atomic_files import write_durably

if TYPE_CHECKING:
    from federation.protocol.study_config import Study


@functools.cache
def presets() -> dict[str, "Study"]:
    """The release's own studies by name."""
    from federation.protocol.study_config import Study

    return {name: load_settings(path, Study) for name, path in preset_files().items()}


def _names() -> dict[str, list[str]]:
    """The names of the release's own studies by digest; some are equal but for their names and seeds."""
    names: dict[str, list[str]] = {}
    for name, study in presets().items():
        names.setdefault(study_digest(study.model_dump_json()), []).append(name)
    return names


def names_by_digest(folder: Path) -> Mapping[str, list[str]]:
    """As `_names`, worked out by a process of its own and kept in `folder`. Raises Refusal E_GATEWAY_FAILED."""
    kept = folder / f"presets-{version('fedthorax')}.json"
    if not kept.is_file():
        command = [sys.executable, "-P", "-m", "federation.approval.presets"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise Refusal(reasons.GATEWAY_FAILED, private=done.stderr.decode(errors="replace")[-2000:])
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(kept, done.stdout)
    return json.loads(kept.read_bytes())


def names_of(digest: str) -> tuple[str, ...]:
    """The names of the release's own studies that have this digest; there may be several, or none."""
    return tuple(_names().get(digest, ()))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_names()))
