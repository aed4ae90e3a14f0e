"""The release's own studies: study.toml's defaults, the presets and the demo, by name.

Reading them takes torch, for a study names its network: the gateway does it in the process that works out schemas.
"""

import functools
from typing import TYPE_CHECKING

from configs import preset_files
from federation.approval.studies import study_digest
from models.settings import load_settings

if TYPE_CHECKING:
    from federation.study import Study


@functools.cache
def presets() -> dict[str, "Study"]:
    """The release's own studies by name."""
    from federation.study import Study

    return {name: load_settings(path, Study) for name, path in preset_files().items()}


def names_of(digest: str) -> tuple[str, ...]:
    """The names of the release's own studies that have this digest; there may be several, or none."""
    return tuple(name for name, study in presets().items() if study_digest(study.model_dump_json()) == digest)
