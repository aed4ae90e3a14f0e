"""Tests of the persons of synthetic bodies, and of the effects of lung surgery."""

import numpy as np
import pytest

from models.lung_segmenter import Region
from pipeline.phantom.body import chest
from pipeline.phantom.body.person import Person
from pipeline.phantom.body.sample import draw_sample
from pipeline.phantom.body.surgery import Surgery


def test_persons_are_adults_of_both_sexes_and_all_ages() -> None:
    rng = np.random.default_rng(0)
    people = [Person.draw(rng) for _ in range(400)]
    assert all(18 <= each.age_years <= 95 and 0 <= each.wear <= 1 for each in people)
    women, men = ([each.size for each in people if each.is_female is sex] for sex in (True, False))
    assert 150 < len(women) < 250
    assert np.mean(women) < np.mean(men)


def test_most_persons_had_no_surgery_and_a_few_lost_a_lung() -> None:
    rng = np.random.default_rng(0)
    drawn = [Surgery.draw(rng) for _ in range(2000)]
    assert 0.9 < np.mean([each.side == 0 for each in drawn]) < 0.97
    assert 5 < sum(each.without != 0 for each in drawn) < 50
    assert all(each.shift_mm * each.side >= 0 and each.lift_mm >= 0 for each in drawn)


@pytest.mark.parametrize("without", [0, 1])
def test_surgery_on_the_left_leaves_less_left_lung(monkeypatch: pytest.MonkeyPatch, without: int) -> None:
    found = []
    for surgery in (Surgery(), Surgery(1, without, 25.0, 40.0)):
        monkeypatch.setattr(chest.Surgery, "draw", lambda rng, surgery=surgery: surgery)
        regions = draw_sample(np.random.default_rng(6), step_mm=8.0).regions
        found.append([np.count_nonzero(regions == side) for side in (Region.RIGHT_LUNG, Region.LEFT_LUNG)])
    (right, left), (right_after, left_after) = found
    assert left_after < 0.9 * left
    assert right_after > right, "the heart moves to the left"
    assert not without or not left_after
