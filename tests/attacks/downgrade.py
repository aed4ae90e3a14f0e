"""Ways around earlier guarantees: a study that drops its privacy, counters that are reset, a repeated message."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from federation.migration.backup import back_up_site, restore_site
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from tests.attacks.result import Result
from tests.attacks.rig import Answer, Rig, alone_study, released_study, rig, seed_network

ADVERSARY = "the study's settings"
_ROUNDS_A_DAY = 3


def without_privacy(attacked: Rig) -> Result:
    """Run a private study, then one with the same name without privacy."""
    private, plain = released_study("private"), released_study()
    name = "a private study without privacy"
    attacked.ask("train", private, seed_network(private), run="trial-00000001")
    answer = attacked.ask("train", plain, seed_network(plain), run="trial-00000002")
    return Result(name, ADVERSARY, "an update without noise", int(not answer.code), 0, 1, answer.code)


def _allowed(attacked: Rig) -> int:
    """Ask for twice as many rounds of training as a day allows; return how many are answered."""
    study = released_study()
    numbers = range(1, 2 * _ROUNDS_A_DAY + 1)
    return sum(not attacked.ask("train", study, seed_network(study), round_number=n).code for n in numbers)


def restarted(attacked: Rig) -> Result:
    """Use all rounds of a day, restart the gateway, and ask for more."""
    _allowed(attacked)
    attacked.restart_gateway()
    more = _allowed(attacked)
    return Result(
        "a gateway that starts again",
        "nothing but time",
        "rounds beyond a day's",
        more,
        0,
        _ROUNDS_A_DAY,
        attacked.first_code,
    )


def restored(attacked: Rig) -> Result:
    """As `restarted`, with the gateway's folder restored from a backup from before the day's rounds."""
    folder = attacked.hospital.site.folder / "gateway"
    backup = Path(f"{folder}.backup")
    shutil.copytree(folder, backup)
    _allowed(attacked)

    def put_back() -> None:
        shutil.rmtree(folder)
        backup.rename(folder)

    attacked.restart_gateway(put_back)
    more = _allowed(attacked)
    return Result(
        "a gateway's folder from a backup",
        "a restored backup",
        "rounds beyond a day's",
        more,
        0,
        _ROUNDS_A_DAY,
        attacked.first_code,
    )


def restored_hospital(attacked: Rig) -> Result:
    """Ask about a model after the hospital's backup, wait for its restore, and ask again with one patient more.

    Ledger and gateway's folder are both of the backup, so neither knows the first answer.
    """
    study, site = alone_study(), attacked.hospital.site
    attacked.talk_into(study)
    model = seed_network(study)
    attacked.must("train", study, model)
    backup = Path(f"{site.folder}.backup")
    back_up_site(site.folder, backup)
    attacked.must("evaluate.embed", study, model)

    def put_back() -> None:
        again = Path(f"{site.folder}.again")
        restore_site(backup, again)
        for name in ("ledger", "gateway"):
            shutil.rmtree(site.folder / name)
            (again / name).rename(site.folder / name)
        _one_patient_more(site)

    attacked.restart_gateway(put_back)
    second = attacked.ask("evaluate.embed", study, model)
    return Result(
        "a hospital restored from an older backup",
        "a restored backup, and one patient more",
        "means of features before and after",
        int(not second.code),
        0,
        1,
        second.code,
    )


def _one_patient_more(site: Site) -> None:
    """Move one test patient to the training patients: to the server this is one patient more."""
    with Cohort(site) as cohort:
        patients = cohort.patients()
        moved = next(place for place, patient in enumerate(patients) if patient.split == "test")
        patients[moved] = replace(patients[moved], split="train")
        cohort.replace(patients, [], [])  # type: ignore[arg-type]


def replayed(attacked: Rig) -> Result:
    """Send one message three times; count the answers that differ from the first."""
    study = released_study()
    first = attacked.ask("train", study, seed_network(study))
    answers = [attacked.repeat() for _ in range(2)]
    other = sum(not _is_same(first, answer) for answer in answers if not answer.code)
    return Result("a message sent again", "a message of before", "other answers", other, 0, 2, attacked.first_code)


def _is_same(one: Answer, other: Answer) -> bool:
    return one.metrics == other.metrics and all(
        np.array_equal(array, other.arrays[record][name])
        for record, arrays in one.arrays.items()
        for name, array in arrays.items()
    )


def attacks() -> Iterator[Result]:
    """Run each attack at a separate hospital."""
    limit = {"max_rounds_a_day = 500": f"max_rounds_a_day = {_ROUNDS_A_DAY}"}
    with rig() as attacked:
        yield without_privacy(attacked)
    for attack in (restarted, restored):
        with rig(settings=limit) as attacked:
            yield attack(attacked)
    for attack in (restored_hospital, replayed):
        with rig() as attacked:
            yield attack(attacked)
