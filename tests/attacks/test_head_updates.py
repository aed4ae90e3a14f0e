"""What a hospital's updates of a head on a frozen encoder reveal, through the real gateway."""

from pathlib import Path

import pytest

from federation.client.site_tasks import load_examples
from models.network import build_network
from tests.attacks.cohort import PREPROCESSING
from tests.attacks.head_updates import (
    JOINT_RIDGE,
    LAYERS,
    MEMBERS,
    OTHERS,
    SEEDS,
    UNVARIED,
    approve,
    claimed_right,
    jointly,
    patients_of,
    rounds_at,
    study_on,
)
from tests.attacks.rig import rig
from tests.helpers.encoders import small_encoder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quiet_and_repeatable")]


def test_updates_reveal_who_took_part_if_a_study_without_sums_is_approved(tmp_path: Path) -> None:
    """A known limit, at one hospital. The template of site.toml does not approve such a study."""
    study = study_on(small_encoder(tmp_path / "encoder", PREPROCESSING, layers=LAYERS))
    with rig(seed=SEEDS[0], patients={"train": MEMBERS, **OTHERS}, settings=UNVARIED) as attacked:
        approve(attacked.hospital.site, tmp_path / "encoder")
        first = build_network(study.network, seed=study.study.seed)
        assert attacked.ask("train", study, first).code == "E_STUDY_REFUSED"
        attacked.talk_into(study)
        seen = rounds_at(attacked, study)
        candidates = patients_of(first, load_examples(attacked.hospital.site, study, "train", *OTHERS))
    assert claimed_right(seen, candidates, jointly(candidates, JOINT_RIDGE)) > 0.56 * MEMBERS, "guessing gives half"
