"""Ways around earlier guarantees: a study that drops its privacy, counters that are reset, a repeated message."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.attacks.result import Result
from tests.attacks.rig import Answer, Rig, released_study, rig, seed_network

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
    with rig() as attacked:
        yield replayed(attacked)
