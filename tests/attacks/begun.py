"""Hostile releases as the first model: not approved, with weights that are too long, or replaced by other weights.

The most harmful remaining case is a release with gates as steep as training allows (`gate`). In this case the hospital
approved one such release for each gate.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from federation.approval.releases import ReleaseApprovals
from federation.protocol.study_config import Study
from models.network import HEAD_RMS, SeverityNetwork
from models.release import save_release
from tests.attacks import gate
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, released_study, rig, seed_network
from tests.attacks.score import score
from tests.helpers.descriptions import description

HOLDS = "the weights of a release, a released study that begins from it"
WHAT = "age band, sex, PCR"
ROUND = 6  # the last round in which a site may still receive the first model
SHORT, LONG = 0.97 * HEAD_RMS, 3.0  # root mean squares of a gate's weights


def study_from(attacked: Rig, network: SeverityNetwork, *, approved: bool = True) -> Study:
    """Return a released study that begins from a release with these weights; the hospital approves the study."""
    study = released_study()
    with TemporaryDirectory() as folder:
        about = description(network=study.network, preprocessing=study.preprocessing.model_dump(mode="json"))
        release = save_release(Path(folder), network, about)
        if approved:
            ReleaseApprovals(attacked.hospital.site).approve(Path(folder), by="the hospital")
    begun = study.model_copy(update={"study": study.study.model_copy(update={"begin_from": release.sha256})})
    attacked.talk_into(begun)
    return begun


def gate_at(age: int, longest: float) -> SeverityNetwork:
    way = gate.Way(longest=longest)
    return gate.gated(released_study(), way.weights(age))


def stopped(name: str, code: str) -> Result:
    return Result(name, HOLDS, WHAT, 0, 0, gate.PATIENTS, stopped_by=code)


def not_approved(attacked: Rig) -> Result:
    trap = gate_at(50, SHORT)
    code = attacked.ask("train", study_from(attacked, trap, approved=False), trap).code
    return stopped("a release that nobody approved", code)


def too_long(attacked: Rig) -> Result:
    trap = gate_at(50, LONG)
    code = attacked.ask("train", study_from(attacked, trap), trap).code
    return stopped("a release with a long head", code)


def in_its_place(attacked: Rig) -> Result:
    study = study_from(attacked, seed_network(released_study()))
    code = attacked.ask("train", study, gate_at(50, SHORT)).code
    return stopped("other weights than the approved release's", code)


def read(attacked: Rig) -> list[gate.Row]:
    """Return the rows that are revealed by the updates of releases with gates. Raises Refused."""
    found, patients = [], 0
    for place, age in enumerate(gate.BANDS):
        trap = gate_at(age, SHORT)
        study = study_from(attacked, trap)
        answer = attacked.must("train", study, trap, round_number=ROUND, run=f"begun-{place:04d}")
        patients = int(answer.metrics["num-examples"])
        found.append(gate.equations(trap, answer.network(study), study, patients, ROUND))
    return gate.decode(found, patients)


def gates_in_releases() -> Result:
    """The hospital approves one release for each gate."""
    name, claims, truths = "head gating, in releases that the hospital approved", [], []
    for seed in gate.SEEDS:
        with rig(seed=seed, patients={"train": gate.PATIENTS, "validation": 24, "test": 40}) as attacked:
            truths.append([gate.row(*patient.row) for patient in attacked.hospital.of("train")])
            try:
                claims.append(read(attacked))
            except Refused as refused:
                return stopped(name, refused.code)
    return Result.scored(name, HOLDS, WHAT, score(claims, truths), note=f"{len(gate.BANDS)} releases")


def attacks() -> Iterator[Result]:
    with rig() as attacked:
        yield from (not_approved(attacked), too_long(attacked), in_its_place(attacked))
    yield gates_in_releases()
