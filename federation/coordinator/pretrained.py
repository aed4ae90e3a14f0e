"""The result of a pretraining: a pretrained start, which names the hospitals that it was learnt from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from federation.protocol.study_config import Study
from federation.strategy.round_report import kept_rounds
from models.description import Description
from models.network import SeverityNetwork
from models.pretrained_start import LIMITS, USE
from models.provenance import Provenance, SiteRecord
from models.release import Release, save_release


def save_start(
    folder: Path,
    network: SeverityNetwork,
    study: Study,
    *,
    run: str,
    strategy: str,
    rounds: Sequence[Mapping[str, Any]],
    trained_at: Sequence[str],
) -> Release:
    """Write the pretrained start of a run into `folder`.

    `strategy`: as a card names it. `rounds`: of the run's history. `trained_at`: the hospitals whose patients the
    weights were learnt from, also in an earlier run that this one began from. A study that begins from the start counts
    them among its own, so that none of them is taken for an unseen hospital.
    """
    counted = Counter(site for entry in rounds for site in entry["sites"])
    about = f"fedthorax {version('fedthorax')}"
    description = Description(
        network=study.network,
        preprocessing=study.preprocessing.model_dump(mode="json"),
        calibration={},
        study=study.study.name,
        run=run,
        rounds=len(kept_rounds(rounds)),
        sites=len(trained_at),
        strategy=strategy,
        software=about,
        trained_on_synthetic_data=study.study.synthetic,
        intended_use=USE,
        limits=LIMITS,
        provenance=Provenance(
            candidate="",  # it is not made from another one
            seed=study.study.seed,
            rounds_planned=study.study.rounds,
            rounds_lost=sum(bool(entry["lost"]) for entry in rounds),
            stopped_early=False,
            strategy_options=dict(study.strategy.options),
            sites={
                site: SiteRecord(
                    patients="", software="", trained=True, rounds=counted[site], dropouts={}, figures={}, left_out={}
                )
                for site in trained_at
            },
            audit=None,
            study=study.model_dump(mode="json", exclude_none=True),
        ),
    )
    return save_release(folder, network, description)
