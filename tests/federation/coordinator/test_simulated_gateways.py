"""Trainings of a masked study in one process: the same model as without masks, and nothing but masked words up."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Message

from federation.client.site_tasks import train_site
from federation.coordinator.connected_sites import Records, Sites
from federation.coordinator.eager_grid import EagerGrid
from federation.coordinator.inprocess import InProcessGrid, sites_here
from federation.coordinator.masked_questions import MaskedSums
from federation.coordinator.rounds import Model, Training
from federation.coordinator.summed_evaluation import SummedExamination
from federation.coordinator.summed_questions import PlainSums, Sums, SumsAndMoments
from federation.gateway.flower_objects import Content
from federation.protocol.batch_norm import MEAN, VARIANCE, combine
from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS, Arrays, pack
from federation.protocol.masked_replies import MASKED
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, Kind
from federation.protocol.study_config import AggregationTable, Study
from federation.secure_aggregation.fixed_point import narrow_scale
from federation.secure_aggregation.groups import groups_of
from federation.secure_aggregation.roster import Roster
from federation.strategy.checkpoint import State
from federation.strategy.round_report import RoundReport
from models.network import build_network
from models.refusal import Refusal
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site
from tests.federation.coordinator.test_inprocess import coarse, study

ROUNDS = 3
FLOAT32 = 2.0**-24  # the rounding of a weight
# On a smaller scan the last layers see one voxel, and most weights of their kernels do not move (E_SECAGG_SPARSE).
SCAN = Preprocessing(method=1, shape=(48, 48, 48), working_spacing_mm=8.0)


def study_of(sites: int, *, secure: bool, strategy: str = "FedAvg", groups: int = 0) -> Study:
    plain = study(strategy)
    # With one epoch a round, the learning rate warms up in round 1, and the updates of round 2 are long and clipped.
    table = plain.study.model_copy(update={"sites": sites, "quorum": sites, "local_epochs": 2})
    changed = {"study": table, "preprocessing": SCAN, "aggregation": AggregationTable(secure=secure, groups=groups)}
    return plain.model_copy(update=changed)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine sites with cohorts of different sizes. Tests must not change them."""
    return sites_in(tmp_path_factory.mktemp("sites"), 9)


@pytest.fixture(scope="module")
def folders(nine: list[Path]) -> list[Path]:
    """Five of the sites."""
    return nine[:5]


def sites_in(root: Path, count: int, patients: int = 12) -> list[Path]:
    made = []
    for number in range(count):
        at, name = HOSPITALS[number % len(HOSPITALS)], f"site-{number}"
        site = synthetic_site(root / name, name, seed=number, min_patients=2, tables="[training]\nthreads = 1")
        write_cohort(site, coarse(at), patients=patients + 2 * number, seed=number, settings=SCAN, anatomy="template")
        made.append(site.folder)
    return made


def trained(what: Study, folders: list[Path], out: Path) -> list[State]:
    """Train, and return the checkpoint of each round."""
    states: list[State] = []
    training = Training(what, out, "run", lambda *_: states.append(training.state))
    training.execute(sites_here(what, folders))
    names = [f"site-{number}" for number in range(len(folders))]
    assert [entry["sites"] for entry in training.history] == [names] * ROUNDS, training.history
    return states


def average_of_a_round(what: Study, folders: list[Path], number: int, arrays: Arrays, buffers: Arrays) -> Model:
    """Return the model that plain FedAvg makes of these sites' replies, without a guard that shortens updates."""
    done = [train_site(Site.open(folder), what, arrays, buffers, round_number=number) for folder in folders]
    examples = [each.examples for each in done]
    weights = np.average([each.arrays[WEIGHTS].astype(np.float64) for each in done], axis=0, weights=examples)
    return Model({WEIGHTS: weights}, combine([each.buffers for each in done], examples))


@pytest.mark.slow
@pytest.mark.parametrize("sites", [3, pytest.param(5, marks=pytest.mark.further)])
def test_each_masked_round_gives_the_model_of_plain_averaging(folders: list[Path], tmp_path: Path, sites: int) -> None:
    """From round to round, because the order of the patients depends on every bit of the weights."""
    what, folders = study_of(sites, secure=True), folders[:sites]
    before = Model(*pack(build_network(what.network, seed=1)))
    longest = np.linalg.norm(before.arrays[WEIGHTS])  # of an update, in round 1; later 3 times the last mean update
    for number, state in enumerate(trained(what, folders, tmp_path), start=1):
        expected = average_of_a_round(what, folders, number, before.arrays, before.buffers)
        moved = np.linalg.norm(expected.arrays[WEIGHTS] - before.arrays[WEIGHTS])
        error = np.linalg.norm(state.arrays[WEIGHTS] - expected.arrays[WEIGHTS])
        assert error < 1e-6 * longest + FLOAT32 * np.linalg.norm(before.arrays[WEIGHTS])
        for kind in (MEAN, VARIANCE):
            np.testing.assert_allclose(state.buffers[BATCH_NORM + kind], expected.buffers[BATCH_NORM + kind], atol=1e-6)
        before, longest = Model(state.arrays, state.buffers), 3 * moved


@pytest.mark.slow
def test_masked_round_in_groups_gives_the_median_of_the_groups_plain_averages(nine: list[Path], tmp_path: Path) -> None:
    what = study_of(9, secure=True, groups=3)
    sites = sites_here(what, nine)
    before = Model(*pack(build_network(what.network, seed=1)))
    assert sites.masked is not None
    training = Training(what.model_copy(update={"study": what.study.model_copy(update={"rounds": 1})}), tmp_path, "run")
    training.execute(sites)
    moved = []
    for group in groups_of(sites.masked.roster, 3):
        of_group = [folder for folder in nine if Site.open(folder).name in group.by_name]
        average = average_of_a_round(what, of_group, 1, before.arrays, before.buffers)
        moved.append(average.arrays[WEIGHTS] - before.arrays[WEIGHTS])
    expected = before.arrays[WEIGHTS] + np.median(moved, axis=0)
    length = np.linalg.norm(before.arrays[WEIGHTS])
    assert np.linalg.norm(training.state.arrays[WEIGHTS] - expected) < (3e-6 + FLOAT32) * length


def spoil_round_1(sites: Sites, group: Roster, weights: int, longest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the first gateway of a group: in round 1 it adds the same number to each weight of the group's sum.

    The sum's mean is then nearly as long as the server accepts, whatever the others send.
    """
    assert sites.masked is not None
    gateways = cast(Any, sites.grid).gateways.gateways
    by_name = {name: gateways[node] for node, name in sites.masked.names.items()}
    gateway = by_name[group.members[0].name]
    patients = sum(by_name[member.name].patients.of_split["train"] for member in group.members)
    limit = longest * min(1.0, 128.0 / math.sqrt(weights))
    one = patients / sites.masked.patients * narrow_scale(limit, len(group.members))
    honest, rounds = gateway.words, itertools.count(1)

    def words(sent: Content) -> np.ndarray:
        made = honest(sent).copy()
        if next(rounds) == 1:
            made[-weights:] += np.uint32(0.7 * longest / math.sqrt(weights) * one)
        return cast(np.ndarray, made)

    monkeypatch.setattr(gateway, "words", words)


@pytest.mark.slow
def test_nine_gateways_in_groups_take_back_what_two_changed_ones_spoil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, folders = study_of(9, secure=True, groups=3), sites_in(tmp_path, 9, patients=30)
    sites = sites_here(what, folders)
    assert sites.masked is not None
    first = pack(build_network(what.network, seed=1))[0][WEIGHTS]
    for group in groups_of(sites.masked.roster, 3)[:2]:
        spoil_round_1(sites, group, first.size, float(np.linalg.norm(first)), monkeypatch)
    reports: list[RoundReport] = []
    training = Training(what, tmp_path, "run", lambda report, *_: reports.append(report))
    training.execute(sites)
    assert [(report.lost_for, report.undone) for report in reports] == [
        (None, ()),
        ("E_MODEL_REJECTED", (1,)),
        (None, ()),
    ]
    assert all(report.valid == tuple(range(1, 10)) for report in reports)
    votes = reports[1].votes
    assert votes["worse"] > votes["not_worse"] and sum(votes.values()) == 9


@pytest.mark.slow
def test_only_masked_words_and_the_ledger_leave_a_simulated_site(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []
    send = InProcessGrid.send_and_receive

    def kept(grid: InProcessGrid, messages: list[Message], **more: float) -> Iterator[Message]:
        for reply in send(grid, messages, **more):
            seen.append(set(reply.content))
            yield reply

    monkeypatch.setattr(InProcessGrid, "send_and_receive", kept)
    trained(study_of(3, secure=True), folders[:3], tmp_path / "run")
    assert seen == [{MASKED, "ledger"}] * 3 * ROUNDS
    for folder in folders[:3]:
        assert not (folder / "keys" / "secagg").exists(), "keys and state are not in the sites' own folders"
        assert not (folder / "peers").exists() and not (folder / "gateway").exists()


def test_two_sites_cannot_mask(folders: list[Path]) -> None:
    with pytest.raises(Refusal, match="E_SECAGG_ROSTER_SMALL"):
        sites_here(study_of(3, secure=True), folders[:2])


@dataclass
class Compared:
    """Asks for masked sums, and compares them with the sums of plain replies."""

    masked: Sums
    plain: Sums
    kinds: list[Kind] = field(default_factory=list)

    def ask(self, kind: Kind, records: Records, what: str) -> SumsAndMoments | None:
        self.kinds.append(kind)
        found, expected = self.masked.ask(kind, records, what), self.plain.ask(kind, records, what)
        assert found is not None and expected is not None
        assert found[0].counts == expected[0].counts
        assert found[0].means == pytest.approx(expected[0].means, abs=1e-4)
        for name, moments in expected[1].items():
            np.testing.assert_allclose(found[1][name].mean, moments.mean, atol=1e-4)
            np.testing.assert_allclose(found[1][name].variance, moments.variance, rtol=1e-3, atol=1e-4)
        return found


@pytest.mark.slow
def test_questions_after_the_rounds_are_masked_as_well(folders: list[Path]) -> None:
    what, lines = study_of(3, secure=True), list[str]()
    here = folders[-3:]  # the others have too few test patients
    sites = sites_here(what, here)
    assert sites.masked is not None
    network = build_network(what.network, seed=1)
    lengths = {"moments": network.features, "looks": APPEARANCE_SIZE}
    masked = MaskedSums(sites.masked, sites, ROUNDS, lengths, lines.append, [])
    open_sites = replace(sites, grid=cast(EagerGrid, InProcessGrid(what, here, "run")), heads={}, masked=None)
    plain = PlainSums(open_sites, [], lines.append, features=network.features, timeout_s=60)
    compared = Compared(masked, plain)
    with masked.serving():
        examination = SummedExamination(what, compared, lines.append)
        examination.examine(Model(*pack(network)), ["site-2", "site-3", "site-4"], 2)
    assert compared.kinds == ["evaluate.embed", "evaluate.calibrate", "evaluate.test"]
