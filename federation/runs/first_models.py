"""The first models of masked runs: a hospital reveals a sum of updates of a model once, in whichever run.

A second sum over the same model could differ from the first one by a single hospital. So two masked runs at the same
hospitals need different first models, that is other seeds, also if their strategies differ.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from federation.protocol.study_config import Study
from federation.runs import reasons
from federation.runs.progress import rounds_of
from federation.runs.run_folder import read_history, read_study, run_names
from models.refusal import Refusal


def check_first_models(studies: Sequence[Study], server: Path) -> None:
    """Check that no masked study begins with the model of another one, or of a masked run of this server.

    The hospitals check it too, but only after they have trained. A run of which each round was lost does not count.
    Raises Refusal E_SEED_USED.
    """
    masked = [study for study in studies if study.aggregation.secure]
    used = _summed(server) if masked else {}
    for study in masked:
        if other := used.get(first := _first_model(study)):
            raise Refusal(reasons.SEED_USED, seed=study.study.seed, other=other)
        used[first] = "another run of this command"


def _summed(server: Path) -> dict[str, str]:
    """Return the runs of this server that have summed updates of their first model, by that model."""
    found = {}
    for name in run_names(server):
        folder = server / "runs" / name
        with suppress(Refusal):  # of a run that another version wrote
            study = read_study(folder)
            if study.aggregation.secure and any(not entry["lost"] for entry in rounds_of(read_history(folder))):
                found[_first_model(study)] = f"the run {name}"
    return found


def _first_model(study: Study) -> str:
    """Return what determines the first model of a run: a release, or the network and the seed."""
    return study.study.begin_from or f"{study.network.model_dump_json()} {study.study.seed}"
