"""The models of which hospitals reveal a sum: they do so once for each model, in whichever run.

A second sum over the same model could differ from the first one by a single hospital. So two masked runs at the same
hospitals need different first models, that is other seeds, also if their strategies differ. If only the answers are
summed, two runs need other seeds if their studies are the same: then all their models may be.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from federation.approval.studies import study_digest
from federation.protocol.study_config import Study
from federation.runs import reasons
from federation.runs.progress import rounds_of
from federation.runs.run_folder import read_history, read_study, run_names
from models.refusal import Refusal


def check_first_models(studies: Sequence[Study], server: Path) -> None:
    """Check that no masked study repeats the models of another one, or of a masked run of this server.

    The hospitals check it too, but only after they have trained. A run of which each round was lost does not count.
    Raises Refusal E_SEED_USED.
    """
    masked = [study for study in studies if study.sums_answers]
    used = _summed(server) if masked else {}
    for study in masked:
        if other := used.get(models := _models(study)):
            raise Refusal(reasons.SEED_USED, seed=study.study.seed, other=other)
        used[models] = "another run of this command"


def _summed(server: Path) -> dict[str, str]:
    """Return the runs of this server that have summed something, by what determines their models."""
    found = {}
    for name in run_names(server):
        folder = server / "runs" / name
        with suppress(Refusal):  # of a run that another version wrote
            study = read_study(folder)
            if study.sums_answers and any(not entry["lost"] for entry in rounds_of(read_history(folder))):
                found[_models(study)] = f"the run {name}"
    return found


def _models(study: Study) -> str:
    """Return what determines the models that must not be summed again.

    Of masked updates that is the first model: a release, or the network and the seed. Of summed answers it is the seed
    and the whole study.
    """
    if not study.aggregation.secure:
        return f"{study_digest(study.model_dump_json())} {study.study.seed}"
    return study.study.begin_from or f"{study.network.model_dump_json()} {study.study.seed}"
