"""Two sums of figures that differ by a hospital: their difference would be that hospital's own figures.

A server can claim that a hospital dropped out, and ask about nearly the same model in another round or run.
"""

from pathlib import Path

import numpy as np
import pytest

from federation.secure_aggregation.answer_vector import sum_of
from federation.secure_aggregation.messages import Header, Uploaded
from tests.federation.secure_aggregation.rig import QuestionRig, Rig, play, refused
from tests.federation.secure_aggregation.test_parts import up_to_upload

ALL = 0b111


@pytest.fixture
def questions(tmp_path: Path) -> QuestionRig:
    return QuestionRig(tmp_path, 5)


@pytest.mark.parametrize("step", ["advertise", "share", "upload"])
def test_test_without_a_hospital_is_not_summed_after_one_with_it(questions: QuestionRig, step: str) -> None:
    play(questions, questions.header(model=1))
    again = questions.header(model=2, run="covid-2")
    assert refused(lambda: play(questions, again, {questions.names[1]: step})) == "E_SECAGG_NOT_SAME"
    play(questions, questions.header(model=2, run="covid-3"))


@pytest.mark.parametrize("step", ["advertise", "share", "upload"])
def test_test_with_a_hospital_is_not_summed_after_one_without_it(questions: QuestionRig, step: str) -> None:
    missing = {questions.names[1]: step}
    play(questions, questions.header(model=1), missing)
    assert refused(lambda: play(questions, questions.header(model=2, run="covid-2"))) == "E_SECAGG_NOT_SAME"
    play(questions, questions.header(model=2, run="covid-3"), {questions.names[1]: "advertise"})


def test_sum_that_was_signed_and_not_revealed_counts(questions: QuestionRig) -> None:
    """The server may have the shares of others."""
    play(questions, questions.header(model=1), until="confirm")
    again = questions.header(model=2, run="covid-2")
    assert refused(lambda: play(questions, again, {questions.names[1]: "advertise"})) == "E_SECAGG_NOT_SAME"


def test_another_kind_of_question_has_hospitals_of_its_own(questions: QuestionRig) -> None:
    play(questions, questions.header(model=1))
    other = questions.header(5, model=1, kind="evaluate.calibrate")
    play(questions, other, {questions.names[1]: "advertise"})


def test_difference_would_be_the_figures_of_the_missing_hospital(questions: QuestionRig) -> None:
    """Control: what the refusals above prevent."""
    names, settings = questions.names, questions.question
    words = {name: questions.words(name).astype(np.uint32) for name in names}
    with np.errstate(over="ignore"):
        every, fewer = (np.sum([words[n] for n in some], axis=0, dtype=np.uint32) for some in (names, names[1:]))
    counts = [sum_of(total, settings, count).counts for total, count in ((every, 5), (fewer, 4))]
    assert {name: counts[0][name] - counts[1][name] for name in counts[0]} == questions.answers[names[0]].counts


def signed(rig: Rig, header: Header, brings: dict[str, int]) -> set[int]:
    """Play a round of training in which these hospitals take part, and return the parts that they kept."""
    up_to_upload(rig, header, brings)
    for name in brings:
        rig.site(name, header).confirm(Uploaded(hospitals=tuple(sorted(brings))))
    return {rig.site(name, header).kept for name in brings}


def test_update_is_summed_without_its_figures_if_a_hospital_is_missing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 5)
    everybody = dict.fromkeys(rig.names, ALL)
    fewer = dict.fromkeys(rig.names[1:], ALL)
    assert signed(rig, rig.header(1, model=1), everybody) == {ALL}
    assert signed(rig, rig.header(2, model=2), fewer) == {0}
    assert signed(rig, rig.header(1, model=3, run="covid-2"), fewer) == {0}, "in another run too"
    assert signed(rig, rig.header(3, model=4), everybody) == {ALL}


def test_hospital_that_was_missing_first_stays_out_of_figures(tmp_path: Path) -> None:
    rig = Rig(tmp_path, 5)
    fewer = dict.fromkeys(rig.names[1:], ALL)
    assert signed(rig, rig.header(1, model=1), fewer) == {ALL}
    assert signed(rig, rig.header(2, model=2), dict.fromkeys(rig.names, ALL)) == {0}
    assert signed(rig, rig.header(3, model=3), fewer) == {ALL}
