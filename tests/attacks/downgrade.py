"""Ways around what was promised before: without privacy after all, counters set back, a message sent twice."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.attacks.result import Result
from tests.attacks.rig import Rig, make_study, rig, seed_network
from tests.attacks.trap import one_step

ADVERSARY = "the study's settings"
_ROUNDS_A_DAY = 3


def without_privacy(attacked: Rig) -> Result:
    """A private study once, then one of the same name without privacy."""
    private = make_study(network={"norm": "group"}, privacy={"noise_multiplier": 1.5, "sample_rate": 0.1})
    attacked.approve(private)
    answer = attacked.ask("train", private, seed_network(private), run="trial-00000001")
    result = one_step(attacked)
    name = "a private study without privacy"
    if answer.code:
        return replace(result, name=name, learnt=0, wrong=0, note=f"the private round itself: {answer.code}")
    return replace(result, name=name, adversary=ADVERSARY)


def _allowed(attacked: Rig) -> int:
    """How many more rounds of training are answered, of twice as many as a day allows."""
    study = make_study()
    attacked.approve(study)
    numbers = range(1, 2 * _ROUNDS_A_DAY + 1)
    return sum(not attacked.ask("train", study, seed_network(study), round_number=n).code for n in numbers)


def restarted(attacked: Rig) -> Result:
    """All rounds of a day; then the gateway ends and starts again."""
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
    """As `restarted`, with the gateway's folder put back from a backup of the day's beginning."""
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
    """One message three times; of each but the first the answer is one too many."""
    study = make_study()
    attacked.approve(study)
    again = 0
    first = attacked.ask("train", study, seed_network(study))
    for _ in range(2):
        again += not attacked.repeat().code
    return Result(
        "a message sent again", "a message of before", "answers", again, 0, 2, first.code or attacked.first_code
    )


def attacks() -> Iterator[Result]:
    """Each on a hospital of its own."""
    limit = {"max_rounds_a_day = 500": f"max_rounds_a_day = {_ROUNDS_A_DAY}"}
    with rig() as attacked:
        yield without_privacy(attacked)
    for attack in (restarted, restored):
        with rig(settings=limit) as attacked:
            yield attack(attacked)
    with rig() as attacked:
        yield replayed(attacked)
