"""Which models a run may send: first the initial model of the seed, then models close to those trained at this site."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.coordinator.accepted_model import shrink
from federation.gateway.first_model import heads_as_json, write_chunks
from federation.gateway.lineage import KEPT_RUNS, Lineage
from federation.gateway.schema import Schema
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.tensor_bounds import Part
from models.refusal import Refusal
from tests.federation.gateway.messages import COUNTER, LONG, MEAN, Model, arrays_of, first_of, parts_for, schema_for

RNG = np.random.default_rng(5)
SHARE = 0.5
LONGEST = 10.0
# Three tensors: in a round the first may move by half of its length, the second by 0.1, and the third must not change.
PLAIN = schema_for(70_000, 8)
PARTS = {
    **parts_for(PLAIN, share=SHARE),
    WEIGHTS: [Part(0, 1.0, SHARE, 0.0, LONGEST), Part(40_000, 0.0, 0.0, 0.1, LONG), Part(69_000, 1.0, 0.0, 0.0, 0.0)],
}
SCHEMA = replace(PLAIN, rounds=20, parts=PARTS, questions={"evaluate.test": 1})
FIRST = first_of(SCHEMA)
SCHEMA = replace(SCHEMA, first=heads_as_json(write_chunks(FIRST)))


@pytest.fixture
def site(tmp_path: Path) -> "Site":
    return Site(tmp_path)


class Site:
    """A site that stores the models of a run. Each check uses a new `Lineage`, as after a restart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lineage(self, schema: Schema = SCHEMA, *, run: str = "run", max_missed: int = 5) -> Lineage:
        return Lineage(self.folder / "models", run, schema, read_first=lambda: arrays_of(FIRST), max_missed=max_missed)

    def code(self, model: Model, number: int, *, kind: str = "train", **settings: object) -> str:
        """The error code with which a model is refused, or "" if it is accepted."""
        try:
            self.lineage(**settings).check(kind, number, arrays_of(model))  # type: ignore[arg-type]
        except Refusal as refusal:
            return refusal.code
        return ""

    def train(self, model: Model, number: int, *, is_worse: bool = False, **settings: object) -> None:
        assert self.code(model, number, **settings) == ""
        chunks = self.folder / "chunks"
        chunks.mkdir(exist_ok=True)
        write_chunks(model, chunks)
        self.lineage(**settings).accept(number, arrays_of(model), chunks, is_worse=is_worse)  # type: ignore[arg-type]


def moved(model: Model, start: int, end: int, rms: float) -> Model:
    """The model with the weights from `start` to `end` moved by exactly this root mean square."""
    weights = model["arrays"][WEIGHTS].astype(np.float64)
    step = RNG.standard_normal(end - start)
    weights[start:end] += step * rms / np.sqrt(np.mean(step**2))
    return {**model, "arrays": {WEIGHTS: weights.astype(np.float32)}}


def rms(model: Model, start: int, end: int) -> float:
    return float(np.sqrt(np.mean(model["arrays"][WEIGHTS][start:end].astype(np.float64) ** 2)))


# --- the initial model ------------------------------------------------------------------------------------


def test_initial_model_of_the_seed_is_accepted(site: Site) -> None:
    assert site.code(FIRST, 1) == ""


@pytest.mark.parametrize(
    "spoil",
    [
        lambda weights: np.nextafter(weights, np.float32(9)),
        lambda weights: weights * np.float32(1.0001),
        lambda weights: np.where(np.arange(weights.size) == 41_000, np.float32(1e-7), weights),
        lambda weights: np.full_like(weights, np.nan),
    ],
)
def test_changed_initial_model_is_refused(site: Site, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    trap = {**FIRST, "arrays": {WEIGHTS: spoil(FIRST["arrays"][WEIGHTS]).astype(np.float32)}}
    assert site.code(trap, 1) == "E_MODEL_FIRST"


def test_changed_initial_buffers_are_refused(site: Site) -> None:
    mean = {MEAN: FIRST["buffers"][MEAN] + np.float32(1)}
    assert site.code({**FIRST, "buffers": {**FIRST["buffers"], **mean}}, 1) == "E_MODEL_FIRST"


def test_run_cannot_change_to_another_study(site: Site) -> None:
    site.train(FIRST, 1)
    other = replace(SCHEMA, first=heads_as_json(write_chunks(moved(FIRST, 0, 10, 1.0))))
    assert site.code(FIRST, 1, schema=other) == "E_MODEL_FIRST"


# --- later models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "allowed"), [(0, 40_000, SHARE * rms(FIRST, 0, 40_000)), (40_000, 69_000, 0.1)]
)
def test_movement_of_each_tensor_is_limited(site: Site, start: int, end: int, allowed: float) -> None:
    site.train(FIRST, 1)
    assert site.code(moved(FIRST, start, end, 0.99 * allowed), 2) == ""
    assert site.code(moved(FIRST, start, end, 1.01 * allowed), 2) == "E_MODEL_DRIFT"
    assert site.code(moved(FIRST, start, end, 1.98 * allowed), 3) == ""  # one round was missed
    assert site.code(moved(FIRST, start, end, 2.02 * allowed), 3) == "E_MODEL_DRIFT"


def gone_back(model: Model) -> Model:
    """The model as a masked study sends it after the hospitals voted a later one back."""
    return {**model, "arrays": shrink(model["arrays"], SCHEMA.fixed(WEIGHTS))}


@pytest.mark.parametrize("times", [1, 2])
def test_study_may_go_back_behind_a_model_that_this_site_found_much_worse(site: Site, times: int) -> None:
    """Also from a model as far away as the bounds allow, and again if the next model is spoiled too."""
    site.train(FIRST, 1)
    accepted, number = moved(FIRST, 40_000, 69_000, 0.05), 2
    site.train(accepted, number)
    for _ in range(times):
        spoiled = moved(accepted, 0, 40_000, 0.999 * SHARE * rms(accepted, 0, 40_000))
        site.train(spoiled, number + 1, is_worse=True)
        accepted, number = gone_back(accepted), number + 2
        site.train(accepted, number)


def test_server_that_goes_back_without_a_reason_is_bound_like_any_other(site: Site) -> None:
    """It wants the hospitals to train near an old model again. How far that may be is what one round allows."""
    site.train(FIRST, 1)
    model = FIRST
    for number in (2, 3, 4):
        model = moved(model, 40_000, 69_000, 0.09)
        site.train(model, number)
    assert site.code(gone_back(FIRST), 5) == "E_MODEL_DRIFT"


def test_tensor_that_training_does_not_change_must_stay_equal(site: Site) -> None:
    site.train(FIRST, 1)
    assert site.code(moved(FIRST, 69_000, 70_000, 1e-6), 2) == "E_MODEL_DRIFT"
    with_optimiser = replace(SCHEMA, server_step=10.0, server_factor=10.0)
    assert site.code(moved(FIRST, 69_000, 70_000, 1e-6), 2, schema=with_optimiser) == "E_MODEL_DRIFT"
    assert site.code(moved(FIRST, 40_000, 69_000, 0.9), 2, schema=with_optimiser) == ""


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_model_that_is_not_finite_is_refused(site: Site, bad: float) -> None:
    site.train(FIRST, 1)
    weights = FIRST["arrays"][WEIGHTS].copy()
    weights[50_000] = bad
    assert site.code({**FIRST, "arrays": {WEIGHTS: weights}}, 2) == "E_MODEL_DRIFT"


def test_decreased_counter_is_refused(site: Site) -> None:
    site.train(FIRST, 1)
    back = {COUNTER: FIRST["buffers"][COUNTER] - 1}
    assert site.code({**FIRST, "buffers": {**FIRST["buffers"], **back}}, 2) == "E_MODEL_DRIFT"


def test_movement_is_measured_from_the_last_model(site: Site) -> None:
    model = FIRST
    for number in range(1, 6):
        site.train(model, number)
        model = moved(model, 0, 40_000, 0.9 * SHARE * rms(model, 0, 40_000))
    assert site.code(model, 6) == ""
    assert site.code(moved(FIRST, 0, 40_000, 0.01), 6) == "E_MODEL_DRIFT"


def test_length_of_a_tensor_is_limited_over_all_rounds(site: Site) -> None:
    model, number, length = FIRST, 0, 1.0
    while length < 0.9 * LONGEST:
        number += 1
        site.train(model, number)
        length *= 1 + 0.99 * SHARE
        model = {**model, "arrays": {WEIGHTS: model["arrays"][WEIGHTS].copy()}}
        model["arrays"][WEIGHTS][:40_000] *= np.float32(1 + 0.99 * SHARE)
        if rms(model, 0, 40_000) > LONGEST:
            break
    assert site.code(model, number + 1) == ("E_MODEL_DRIFT" if rms(model, 0, 40_000) > LONGEST else "")
    model["arrays"][WEIGHTS][:40_000] *= np.float32(1.01 * LONGEST / rms(model, 0, 40_000))
    assert site.code(model, number + 1) == "E_MODEL_DRIFT"


def test_distance_of_a_filter_from_the_seed_is_limited_over_all_rounds(site: Site) -> None:
    """With limits on the whole tensor only, a server could replace one filter in a single round."""
    held = replace(SCHEMA, reaches={WEIGHTS: [[0, 1e30], [100, 0.8], [200, 1e30]]})
    model = FIRST
    for number in range(1, 5):
        site.train(model, number, schema=held)
        model = along(FIRST, 100, 200, 0.19 * number)
    assert site.code(model, 5, schema=held) == ""
    assert site.code(along(FIRST, 100, 200, 0.81), 5, schema=held) == "E_MODEL_DRIFT"
    assert site.code(along(FIRST, 100, 200, 0.81), 5) == ""
    assert site.code(along(FIRST, 200, 300, 0.81), 5, schema=held) == ""


def test_question_about_a_model_far_from_the_seed_is_refused(site: Site) -> None:
    held = replace(SCHEMA, reaches={WEIGHTS: [[0, 1e30], [100, 0.8], [200, 1e30]]})
    site.train(FIRST, 1, schema=held)
    assert site.code(along(FIRST, 100, 200, 0.79), 0, kind="evaluate.test", schema=held) == ""
    assert site.code(along(FIRST, 100, 200, 0.81), 0, kind="evaluate.test", schema=held) == "E_MODEL_DRIFT"


def test_server_optimiser_widens_the_limit_of_a_filter(site: Site) -> None:
    held = replace(SCHEMA, reaches={WEIGHTS: [[0, 1e30], [100, 0.8], [200, 1e30]]}, server_factor=2.0)
    site.train(FIRST, 1, schema=held)
    assert site.code(along(FIRST, 100, 200, 1.59), 2, schema=held) == ""
    assert site.code(along(FIRST, 100, 200, 1.61), 2, schema=held) == "E_MODEL_DRIFT"


def along(model: Model, start: int, end: int, distance: float) -> Model:
    """The model with each weight from `start` to `end` moved by this distance."""
    weights = model["arrays"][WEIGHTS].copy()
    weights[start:end] += np.float32(distance)
    return {**model, "arrays": {WEIGHTS: weights}}


def test_number_of_missed_rounds_is_limited(site: Site) -> None:
    site.train(FIRST, 1)
    near = moved(FIRST, 0, 40_000, 0.01)
    assert site.code(near, 7) == ""
    assert site.code(near, 8) == "E_MODEL_DRIFT"
    assert site.code(near, 3, max_missed=1) == ""
    assert site.code(near, 4, max_missed=1) == "E_MODEL_DRIFT"


def test_first_task_of_a_late_site_is_checked_against_the_initial_model(site: Site) -> None:
    late = moved(FIRST, 0, 40_000, 2.9 * SHARE * rms(FIRST, 0, 40_000))
    assert site.code(late, 4) == ""
    assert site.code(late, 3) == "E_MODEL_FIRST"
    assert site.code(late, 7) == "E_MODEL_FIRST"


def test_site_may_miss_many_rounds_if_the_study_samples_sites(site: Site) -> None:
    drawing = replace(SCHEMA, draws_sites=True)
    site.train(FIRST, 1, schema=drawing)
    assert site.code(moved(FIRST, 0, 40_000, 0.01), 15, schema=drawing) == ""


# --- rounds -----------------------------------------------------------------------------------------------


def test_lost_round_may_be_repeated_with_the_same_model(site: Site) -> None:
    site.train(FIRST, 1)
    site.train(FIRST, 1)
    site.train(FIRST, 2)
    second = moved(FIRST, 0, 40_000, 0.1)
    site.train(second, 3)
    assert site.code(FIRST, 3) == ""  # the server has lost its newest checkpoint
    assert site.code(second, 9) == ""
    assert site.code(second, 10) == "E_MODEL_DRIFT"


@pytest.mark.parametrize("number", [0, -1, 21, 100_000])
def test_round_number_outside_the_run_is_refused(site: Site, number: int) -> None:
    """After the last round the learning rate is zero, and an update would be a sum of gradients."""
    assert site.code(FIRST, number) == "E_ROUND_NUMBER"


def test_initial_model_is_refused_in_late_rounds(site: Site) -> None:
    assert site.code(FIRST, 6) == ""
    assert site.code(FIRST, 7) == "E_MODEL_FIRST"


def test_number_of_training_tasks_of_a_run_is_limited(site: Site) -> None:
    short = replace(SCHEMA, rounds=2)
    for _ in range(4):
        site.train(FIRST, 1, schema=short)
    assert site.code(FIRST, 1, schema=short) == "E_ROUND_NUMBER"


# --- questions --------------------------------------------------------------------------------------------


def test_question_about_a_model_not_trained_here_is_refused(site: Site) -> None:
    assert site.code(FIRST, 0, kind="evaluate.test") == "E_MODEL_UNTRAINED"
    site.train(FIRST, 1)
    near, far = (moved(FIRST, 0, 40_000, share * SHARE * rms(FIRST, 0, 40_000)) for share in (5.9, 6.1))
    assert site.code(FIRST, 0, kind="evaluate.test") == ""
    assert site.code(near, 0, kind="evaluate.calibrate") == ""
    assert site.code(far, 0, kind="train.head") == "E_MODEL_DRIFT"
    assert site.code(near, 0, kind="evaluate.test", run="another") == "E_MODEL_UNTRAINED"


def test_models_of_other_sites_are_evaluated_only_if_the_study_allows_it(site: Site) -> None:
    judging = replace(SCHEMA, questions={"evaluate.test": 4})
    site.train(FIRST, 1, schema=judging)
    other = moved(FIRST, 0, 40_000, 15 * SHARE * rms(FIRST, 0, 40_000))
    assert site.code(other, 0, kind="evaluate.test", schema=judging) == ""
    assert site.code(other, 0, kind="evaluate.test") == "E_MODEL_DRIFT"


def test_local_model_and_common_model_are_tracked_separately(site: Site) -> None:
    judging = replace(SCHEMA, questions={"evaluate.test": 2})
    site.train(FIRST, 1, schema=judging)
    common = moved(FIRST, 0, 40_000, 0.2)
    site.train(common, 2, schema=judging)
    site.train(FIRST, 1, schema=judging)  # training of the local model starts from the initial model
    local = moved(FIRST, 0, 40_000, 0.3)
    site.train(local, 2, schema=judging)
    assert site.code(moved(common, 0, 40_000, 0.2), 3, schema=judging) == ""
    assert site.code(moved(local, 0, 40_000, 0.2), 3, schema=judging) == ""


# --- storage ----------------------------------------------------------------------------------------------


def test_kill_while_a_model_is_remembered_does_not_end_the_run(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the new state or the old one is on the disk: it has all of its chunks."""
    second, third = moved(FIRST, 0, 40_000, 0.001), moved(FIRST, 0, 40_000, 0.002)
    site.train(FIRST, 1)
    site.train(second, 2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("write_durably", "Lineage._drop_chunks"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"federation.gateway.lineage.{place}", killed)
            site.train(third, 3)
        assert site.code(third, 3) == ""
        assert site.code(second, 3, kind="evaluate.test") in {"", "E_MODEL_UNTRAINED"}
    site.train(third, 3)
    assert site.code(moved(third, 0, 40_000, 0.001), 4) == ""


def test_only_the_last_models_and_the_newest_runs_are_stored(site: Site) -> None:
    site.train(FIRST, 1)
    kept = len(list((site.folder / "models" / "run").iterdir()))
    site.train(moved(FIRST, 0, 40_000, 0.1), 2)
    assert len(list((site.folder / "models" / "run").iterdir())) == kept
    for number in range(KEPT_RUNS + 3):
        site.train(FIRST, 1, run=f"run-{number}")
    assert len(list((site.folder / "models").iterdir())) == KEPT_RUNS
