"""A fast part of `make attack`: one attack of each kind on the real gateway, with the required result."""

import numpy as np
import pytest

from configs import SIZES, usual_studies
from federation.approval.presets import presets
from federation.protocol.metric_allowlist import APPEARANCE_SIZE
from tests.attacks import codes, gate, invented, losses, picture, questions, scan, typical
from tests.attacks.__main__ import BEGIN, END, PAGE, table, unknown, with_table
from tests.attacks.imprint import imprint, look, within_reach
from tests.attacks.known import KNOWN
from tests.attacks.phantoms import scans, ward_patients
from tests.attacks.result import Result
from tests.attacks.rig import Refused, alone_study, released_study, rig, seed_network
from tests.attacks.score import from_matrix, score
from tests.attacks.trap import Trap, any_study, keys, one_step, trap_network

pytestmark = pytest.mark.usefixtures("quiet_and_repeatable")


@pytest.mark.slow
def test_original_attacks_are_stopped() -> None:
    """The original messages, from before the guards existed, at one hospital."""
    with rig() as attacked:
        results = [one_step(attacked), questions.one_run(attacked)]
        results += [questions.discriminants(attacked), questions.one_patient_more(attacked)]
        results.append(codes.names_as_codes(attacked))
    assert not unknown(results)
    assert all(result.stopped_by for result in results)


@pytest.mark.slow
def test_trap_weights_are_stopped_in_a_released_study() -> None:
    study = released_study()
    trap = trap_network(
        any_study(network={"tabular_features": 8}), [key - 0.5 for key in keys()[:8]], Trap(1e-6, (1, 0))
    )
    with rig() as attacked:
        answer = attacked.ask("train", study, trap)
        assert answer.code == "E_MODEL_FIRST"
        assert not attacked.ask("train", study, seed_network(study)).code


@pytest.mark.slow
def test_head_that_grows_each_round_is_stopped() -> None:
    with (
        rig(seed=gate.SEEDS[0], patients={"train": gate.PATIENTS, "validation": 24, "test": 40}) as attacked,
        pytest.raises(Refused, match="E_MODEL_DRIFT"),
    ):
        gate.read(attacked, released_study(), gate.BANDS[:1], gate.Way())


@pytest.mark.slow
def test_gates_within_weight_limit_reveal_few_patients() -> None:
    """Without the limit on weights, or with one order of patients for all gates, most rows would be revealed."""
    with rig(seed=gate.SEEDS[0], patients={"train": gate.PATIENTS, "validation": 24, "test": 40}) as attacked:
        truth = [gate.row(*patient.row) for patient in attacked.hospital.of("train")]
        claims = gate.read(attacked, released_study(), gate.BANDS[::2], gate.SHORT)
    assert score([claims], [truth]).right < 0.5 * len(truth)


@pytest.mark.slow
def test_thresholds_on_scan_are_stopped_in_second_round() -> None:
    """These weights are accepted some rounds later. `scan_trap` and `moments` measure what they reveal then."""
    study = released_study()
    with rig() as attacked:
        attacked.must("train", study, seed_network(study), round_number=1)
        answers = [
            attacked.ask("train", study, scan.scan_trap(study, gates=gates), round_number=2) for gates in ("bn1", "bn2")
        ]
    assert [answer.code for answer in answers] == ["E_MODEL_DRIFT"] * 2


@pytest.mark.slow
def test_thresholds_on_scan_follow_lung_size() -> None:
    """Control: otherwise the attacks on these figures would prove nothing."""
    pool = scan.make_pool(scan.scan_trap(released_study(), gates="bn2"), gates="bn2")
    assert np.corrcoef(pool.last.mean(axis=1), pool.measure)[0, 1] > 0.9
    assert np.corrcoef(pool.first.mean(axis=1), pool.measure)[0, 1] > 0.9


@pytest.mark.slow
def test_studies_that_the_template_approves_reveal_no_figure_of_one_hospital() -> None:
    masked = [name for name in usual_studies() if presets()[name].aggregation.secure]
    same = {*masked[1:], *SIZES}  # one of the masked ones is enough here, and the rig has a grid of its own
    for preset in set(usual_studies()) - same:
        study = released_study(preset)
        model = seed_network(study)
        typical = dict.fromkeys(("mean", "variance"), np.ones(APPEARANCE_SIZE, np.float32))
        with rig() as attacked:
            trained = attacked.ask("train", study, model)
            if trained.code:  # no sum is opened; the list is too short for groups; noise at so few patients
                assert trained.code in ("E_RUN_OVER", "E_SECAGG_ROSTER_SMALL", "E_REPLY_UPDATE")
                continue
            assert set(trained.metrics) == {"num-examples"}
            at = {"slope_severe": 1.0, "intercept_severe": 0.0, "rule_out_severe": 0.1}
            assert attacked.ask("evaluate.test", study, model, config=at).code == "E_SECAGG_THRESHOLDS"
            calibrated = attacked.ask("evaluate.calibrate", study, model, records={"typical": typical})
            assert calibrated.code == "E_RUN_OVER"
            assert attacked.ask("evaluate.test", study, model).code == "E_RUN_OVER"
            assert attacked.ask("evaluate.embed", study, model).code == "E_RUN_OVER"


@pytest.mark.slow
def test_losses_of_rounds_reveal_patients_in_a_study_without_sums() -> None:
    """A known limit. Control: otherwise it would prove nothing that the default study has no losses."""
    study, rng = alone_study(), np.random.default_rng(8)
    with rig(seed=losses.SEEDS[0], patients=losses.PATIENTS) as attacked:
        attacked.talk_into(study)
        told = losses.ask(attacked, study, invented.Probe.drawn(study, rng), run="losses-0000")
        truth = [invented.row(patient) for patient in attacked.hospital.of("validation")]
    assert told is not None
    counts = invented.counts_of(truth)
    for label, loss in told.losses.items():
        yes, no = (counts[list(kinds[label])].sum(axis=0) for kinds in (invented.POSITIVE, invented.NEGATIVE))
        logits = told.logits[label]
        expected = yes @ np.logaddexp(0, -logits) + no @ np.logaddexp(0, logits)
        assert loss == pytest.approx(expected / (yes.sum() + no.sum()), abs=0.006), "three digits"


@pytest.mark.slow
def test_invented_calibrations_let_the_server_set_thresholds() -> None:
    """A known limit, at one hospital. Control: otherwise the attack with more questions would prove nothing."""
    study = alone_study()
    (probe,) = invented.draw_probes(study, 1)
    with rig(seed=invented.SEEDS[0], patients=invented.PATIENTS) as attacked:
        attacked.talk_into(study)
        answer = invented.ask(attacked, study, probe, run="trial-1")
        truth = [invented.row(patient) for patient in attacked.hospital.of("test")]
    for label, wanted in probe.wanted.items():
        assert list(answer.thresholds[label].values()) == wanted
    assert len(list(answer.shares())) == 8
    assert invented.misses([answer], invented.counts_of(truth)) == pytest.approx(0, abs=1e-6)


def test_known_scan_changes_reported_distances_little() -> None:
    """The mean is close to the scan's own appearance features.

    Without a minimum distance, the figures would reveal whether the scan is among the patients.
    """
    decoder = typical.Decoder.fitted(beside=0)
    patients = typical.pool()[:48]
    right = 0
    for place in range(24):
        others = np.delete(patients, place, axis=0)[:23]
        (mean,) = typical.means(patients[place], beside=0)
        answers = [
            typical.figures_at(np.vstack([others, some[None]]), mean) for some in (patients[place], patients[-1])
        ]
        assert abs(answers[0][0] - answers[1][0]) <= 0.1
        right += decoder.is_there(typical.observed(answers[:1])) + (not decoder.is_there(typical.observed(answers[1:])))
    assert right < 0.9 * 48


@pytest.mark.slow
def test_thresholds_by_place_are_stopped_at_any_speed() -> None:
    study = released_study()
    made = imprint(study, np.full(seed_network(study).features, 2.0), head=picture.HEAD)
    with rig() as attacked:
        attacked.must("train", study, scan.halfway(study, within_reach(study, made).network), round_number=6)
        assert attacked.ask("train", study, made.network, round_number=12).code == "E_MODEL_DRIFT"
        assert not attacked.ask("train", study, within_reach(study, made).network, round_number=12).code


@pytest.mark.slow
def test_thresholds_by_place_depend_little_on_other_patients_of_a_batch() -> None:
    """Control: otherwise batch norm would make the thresholds relative to the other patients.

    The attack would then prove nothing.
    """
    study = released_study(preprocessing=picture.PREPROCESSING)
    made = imprint(study, np.full(seed_network(study).features, 2.0), head=picture.HEAD)
    patients = scans(ward_patients(0, 8))
    order = np.random.default_rng(1).permutation(len(patients))
    alone, mixed = look(made, patients, batch=4).measure[order], look(made, patients[order], batch=4).measure
    assert np.corrcoef(alone, mixed)[0, 1] > 0.9


def test_decoder_gain_is_high_only_for_informative_observations() -> None:
    rng = np.random.default_rng(1)
    counts = rng.multinomial(40, np.full(24, 1 / 24), size=1_000).astype(np.float64)
    decoder = scan.fit(counts @ rng.normal(size=(24, 60)), counts)
    blind = scan.fit(rng.normal(size=(1_000, 60)), counts)
    assert decoder.gain > 0.9
    assert blind.gain < 0.05


def test_right_guesses_do_not_count_as_learnt() -> None:
    rng = np.random.default_rng(1)
    guesses = from_matrix(rng.integers(20, 30, (5, 5)), claimed=200, of=200)
    assert not guesses.is_learnt
    known = from_matrix(np.full((5, 5), 20) + 10 * np.eye(5, dtype=int), claimed=200, of=200)
    assert known.is_learnt
    assert (known.right, known.by_chance) == (150, 100)


def test_each_true_row_counts_once() -> None:
    found = score([["a", "a", "b"], ["c"]], [["a", "b"], ["b"]])
    assert (found.right, found.wrong, found.of) == (2, 2, 3)


def test_successful_attack_that_is_not_a_known_limit_fails() -> None:
    new = Result("a new attack", "everything", "names", 1, 0, 1)
    name = next(iter(KNOWN))
    old = Result(name, "a study", "rows", 1, 0, 1)
    assert unknown([new, old]) == [new]
    assert "**not stopped**" in table([new])
    assert KNOWN[name] in table([old])


def test_page_has_table_of_all_known_limits() -> None:
    page = PAGE.read_text(encoding="utf-8")
    written = page.partition(BEGIN)[2].partition(END)[0]
    assert all(name in written and reason in written for name, reason in KNOWN.items())
    assert with_table(page, []).count(BEGIN) == 1
