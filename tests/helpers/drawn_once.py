"""Draws each synthetic patient once, for several processes whose cohorts hold equal patients."""

import hashlib
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

from pipeline.phantom import cohorts
from pipeline.preprocessing.preprocess_settings import settings_digest
from pipeline.site.folder import Site


def draw_once(folder: Path) -> None:
    """Let `write_cohort` of this process keep each patient in `folder`, and take those that are there already.

    A patient follows from the arguments of `write_cohort`, except the number of patients. The site is that of
    `synthetic_site` with the same seed: its key, and so its pseudonyms and splits, follow from its name.
    """
    draw = cohorts.write_patient

    def kept_or_drawn(
        site: Site, at: Any, seed: int, settings: Any, acquisition: Any, tensors: Path, *rest: Any
    ) -> Any:
        what = (site.name, at, seed, settings_digest(settings), acquisition.__qualname__, *rest)
        kept = folder / hashlib.sha256(repr(what).encode()).hexdigest()
        if not kept.exists():
            made = draw(site, at, seed, settings, acquisition, tensors, *rest)
            if made[1].tensor:
                shutil.copy(tensors / made[1].tensor, folder / made[1].tensor)
            partial = kept.with_suffix(f".{os.getpid()}")
            partial.write_bytes(pickle.dumps(made))
            partial.rename(kept)
            return made
        made = pickle.loads(kept.read_bytes())
        if made[1].tensor:
            shutil.copy(folder / made[1].tensor, tensors / made[1].tensor)
        return made

    cohorts.write_patient = kept_or_drawn
