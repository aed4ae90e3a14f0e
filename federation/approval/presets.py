"""The studies that this release ships, by name: study.toml's defaults, the presets and the demo.

Each of them can also be had at another size (`configs.SIZES`), under two names: "masked+standard-gpu".

Reading them requires torch, because a study names its network. The gateway therefore asks a separate process for their
digests, once per release:

    python -m federation.approval.presets     prints digests and names as JSON
"""

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from configs import AND, SIZES, preset_files
from federation.approval import reasons
from federation.approval.studies import study_digest
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.system.atomic_files import write_durably

if TYPE_CHECKING:
    from federation.protocol.study_config import Study


@functools.cache
def presets() -> dict[str, "Study"]:
    """Return the studies that this release ships, by name."""
    from federation.protocol.study_config import Study

    return {name: load_settings(path, Study) for name, path in preset_files().items()}


@functools.cache
def sized() -> dict[str, "Study"]:
    """Return the shipped studies at each other size, by both names. Only their preprocessing differs."""
    return {
        f"{name}{AND}{size}": study.model_copy(update={"preprocessing": presets()[size].preprocessing})
        for size in SIZES
        for name, study in presets().items()
        if name not in SIZES and study.preprocessing != presets()[size].preprocessing
    }


def _names() -> dict[str, list[str]]:
    """Return the names of the shipped studies by digest; some differ only in name and seed and share a digest.

    A joined name is left out where a single one suffices.
    """
    names: dict[str, list[str]] = {}
    for name, study in presets().items():
        names.setdefault(study_digest(study.model_dump_json()), []).append(name)
    single = set(names)
    for name, study in sized().items():
        if (digest := study_digest(study.model_dump_json())) not in single:
            names.setdefault(digest, []).append(name)
    return names


def names_by_digest(folder: Path) -> Mapping[str, list[str]]:
    """Return what `_names` returns, computed in a separate process and kept in `folder`. Raises E_GATEWAY_FAILED."""
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
    """Return the names of the shipped studies that have this digest; possibly several, or none."""
    return tuple(_names().get(digest, ()))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_names()))
