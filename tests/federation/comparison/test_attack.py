"""Attacks on a release: their results at sites, their refusals, and their section of the card."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from federation.cli.study import app
from federation.client.site_tasks import load_examples
from federation.comparison import attack
from federation.comparison.attack import measure, require_controls, study_of
from federation.protocol.study_config import Study, StudyNetwork, StudyTable, StudyTraining
from models import membership
from models.attacks import Attacks, Control
from models.description import Description, Privacy
from models.membership import JOINT
from models.network import build_network
from models.refusal import Refusal
from models.release import ATTACKS, CARD, DESCRIPTION, WEIGHTS, add_attacks, card, load_release
from models.release import save_release as save
from pipeline.cohort.store import Cohort, PatientRow, Scan
from pipeline.cohort.tensor_files import save_tensor
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site, Split, init_site
from pipeline.training.privacy_budget import PrivacySettings
from pipeline.training.train import train
from pipeline.training.train_settings import Schedule

pytestmark = pytest.mark.slow
PREPROCESSING = Preprocessing(shape=(16, 16, 16))
STUDY = Study(
    study=StudyTable(name="small", rounds=1, local_epochs=1, sites=1, quorum=1),
    network=StudyNetwork(architecture="resnet10", widen_factor=0.125),
    preprocessing=PREPROCESSING,
    training=StudyTraining(augment=False),
)
PATIENTS: dict[Split, int] = {"train": 16, "validation": 4, "test": 12}
LEAST = 10
SETTINGS = (
    f'[site]\nname = "ward"\nmin_patients = {LEAST}\n[laboratory]\nfile = "pcr.csv"\n'
    '[outcomes]\nfile = "outcomes.csv"\n[training]\nthreads = 1\n'
)


def make_site(folder: Path, patients: dict[Split, int]) -> Site:
    """Create a site with noise scans and random labels, so that a model can only memorise its patients."""
    site, rng = init_site(folder, SETTINGS), np.random.default_rng(0)
    rows = []
    with Cohort(site) as cohort:
        for split, count in patients.items():
            for number in range(count):
                name = f"{split}-{number}"
                save_tensor(cohort.tensors, f"{name}.npy", rng.normal(0, 0.5, (2, 16, 16, 16)).astype(np.float16))
                scan = Scan(name, settings_digest(PREPROCESSING), None, None, "", name, f"{name}.npy", None)
                cohort.add_scan(scan)
                known: bool | None = bool(rng.integers(2)) if number < 8 else None  # severity is known for eight only
                rows.append(PatientRow(name, split, f"{name}.npy", 60.0, "F", bool(rng.integers(2)), known))
        cohort.replace(rows, [], {row.pseudonym for row in rows})
    return site


def describe(study: Study) -> Description:
    return Description(
        network=study.network,
        preprocessing=study.preprocessing.model_dump(mode="json"),
        calibration={},
        study="small",
        run="run-1",
        rounds=1,
        sites=1,
        strategy="FedAvg",
        software="fedthorax 0",
        trained_on_synthetic_data=True,
        privacy=None
        if study.privacy is None
        else Privacy(noise_multiplier=1, sample_rate=0.5, max_grad_norm=1, delta=1e-5, epsilon={"ward": 1.0}),
    )


@dataclass(frozen=True)
class Measured:
    site: Site
    model: Path
    attacks: Attacks
    progress: list[tuple[int, int]]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "BOOTSTRAPS", 50)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """A release that has memorised its patients, and the attack results, with the real controls."""
    folder = tmp_path_factory.mktemp("attacked")
    site = make_site(folder / "site", PATIENTS)
    network = build_network(STUDY.network, seed=1)
    train(network, load_examples(site, STUDY, "train"), STUDY.training, Schedule(0, 40, 40), seed=1)
    save(folder / "model", network, describe(STUDY))
    progress: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(membership, "BOOTSTRAPS", 50)
        attacks = measure(folder / "model", [site], STUDY, lambda *done: progress.append(done), steps=2)
    yield Measured(site, folder / "model", attacks, progress)


@pytest.fixture
def no_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the controls in tests of other behaviour."""
    passed = Control(value=1, needed=0)
    monkeypatch.setattr("models.membership.control", lambda settings: passed)
    monkeypatch.setattr("models.inversion.control", lambda: passed)


def refused(*arguments: object, **others: object) -> str:
    with pytest.raises(Refusal) as caught:
        measure(*arguments, **others)  # type: ignore[arg-type]
    return caught.value.code


def nothing(done: int, total: int) -> None:
    pass


def test_membership_attack_finds_memorised_patients_only(measured: Measured, tmp_path: Path, no_controls: None) -> None:
    found = measured.attacks.membership[JOINT]
    assert (found.members, found.others) == (PATIENTS["train"], PATIENTS["test"])
    assert found.auroc.value > 0.9 and found.tpr_at_10_percent_fpr.value > 0.5
    save(tmp_path / "fresh", build_network(STUDY.network, seed=1), describe(STUDY))
    fresh = measure(tmp_path / "fresh", [measured.site], STUDY, nothing, steps=1).membership[JOINT]
    assert fresh.auroc.value < 0.75


def test_both_controls_pass(measured: Measured) -> None:
    assert measured.attacks.membership_control.value >= measured.attacks.membership_control.needed == 0.8
    assert measured.attacks.inversion_control.value >= measured.attacks.inversion_control.needed == 30
    require_controls(measured.attacks)


def test_inversion_is_measured_from_one_scan_to_all_patients(measured: Measured) -> None:
    assert [view.scans for view in measured.attacks.inversion] == [1, 8, PATIENTS["train"]]
    assert all(np.isfinite([v.best_db, v.constant_db, v.typical_db]).all() for v in measured.attacks.inversion)


def test_progress_counts_up_to_the_total(measured: Measured) -> None:
    total = measured.progress[-1][1]
    assert measured.progress == [(done, total) for done in range(total + 1)]


def test_no_figure_covers_fewer_patients_than_the_site_minimum(measured: Measured) -> None:
    """Severity is known for at most eight patients of a split, and the minimum of the site is ten."""
    assert set(measured.attacks.membership) == {JOINT, "pcr_positive"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_too_few_patients_are_refused(measured: Measured, tmp_path: Path, split: Split) -> None:
    site = make_site(tmp_path / "site", PATIENTS | {split: LEAST - 1})
    assert refused(measured.model, [measured.site, site], STUDY, nothing) == "E_TOO_FEW_PATIENTS"


def test_attack_on_a_private_study_charges_no_budget(tmp_path: Path, no_controls: None) -> None:
    private = STUDY.model_copy(
        update={
            "network": STUDY.network.model_copy(update={"norm": "group"}),
            "privacy": PrivacySettings(noise_multiplier=1, sample_rate=0.5, max_grad_norm=1, delta=1e-5),
        }
    )
    site = make_site(tmp_path / "site", PATIENTS)
    save(tmp_path / "model", build_network(private.network, seed=1), describe(private))
    before = {path for path in site.folder.rglob("*") if "cohort" not in path.parts}
    attacks = measure(tmp_path / "model", [site], private, nothing, steps=1)
    assert len(attacks.inversion) == 3
    assert {path for path in site.folder.rglob("*") if "cohort" not in path.parts} == before
    with pytest.raises(Refusal, match="E_ATTACK_STUDY"):
        study_of(load_release(tmp_path / "model").description, None)  # only the study file contains the noise settings


def test_study_that_does_not_match_the_model_is_refused(measured: Measured, tmp_path: Path) -> None:
    description = load_release(measured.model).description
    assumed = study_of(description, None)
    assert assumed.network.model_dump() == STUDY.network.model_dump() and assumed.preprocessing == STUDY.preprocessing
    file = tmp_path / "study.toml"
    file.write_text('[study]\nname = "other"\nrounds = 1\nsites = 1\nquorum = 1\n')
    with pytest.raises(Refusal, match="E_ATTACK_STUDY"):
        study_of(description, file)


def test_card_contains_attack_figures_and_release_hash_is_unchanged(measured: Measured, tmp_path: Path) -> None:
    model = copy_of(measured.model, tmp_path)
    sealed = {name: (model / name).read_bytes() for name in (WEIGHTS, DESCRIPTION)}
    name = load_release(model).sha256
    add_attacks(model, measured.attacks)
    assert {name: (model / name).read_bytes() for name in sealed} == sealed
    assert load_release(model).sha256 == name
    text = (model / CARD).read_text(encoding="utf-8")
    for figure in (str(measured.attacks.membership[JOINT].auroc), f"| {measured.attacks.inversion[2].best_db:.1f} |"):
        assert figure in text
    assert "reached, so this measurement can find a leak" in text and "could not be trusted" not in text
    # The card can be recreated from the files in the folder.
    told = Attacks.model_validate_json((model / ATTACKS).read_bytes())
    assert told == measured.attacks and told.release == name
    assert card(load_release(model).description, name, told) == text


def test_new_release_in_the_same_folder_removes_old_attacks(measured: Measured, tmp_path: Path) -> None:
    model = copy_of(measured.model, tmp_path)
    add_attacks(model, measured.attacks)
    save(model, build_network(STUDY.network, seed=2), describe(STUDY))
    assert not (model / ATTACKS).exists()
    assert "Attacks measured" not in (model / CARD).read_text(encoding="utf-8")


def test_attacks_on_another_release_are_refused(measured: Measured, tmp_path: Path) -> None:
    save(tmp_path / "other", build_network(STUDY.network, seed=2), describe(STUDY))
    before = (tmp_path / "other" / CARD).read_bytes()
    with pytest.raises(Refusal, match="E_MODEL_ALTERED"):
        add_attacks(tmp_path / "other", measured.attacks)
    assert (tmp_path / "other" / CARD).read_bytes() == before and not (tmp_path / "other" / ATTACKS).exists()


@pytest.mark.parametrize("which", ["membership_control", "inversion_control"])
def test_card_states_that_a_failed_control_makes_the_attack_untrustworthy(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    model = copy_of(measured.model, tmp_path)
    failed = measured.attacks.model_copy(update={which: Control(value=0.5, needed=0.8)})
    monkeypatch.setattr(attack, "measure", lambda *_, **__: failed)
    result = CliRunner().invoke(app, ["attack", str(model), "--members", str(measured.site.folder), "--json"])
    assert isinstance(result.exception, Refusal) and result.exception.code == "E_ATTACK_CONTROL"
    text = (model / CARD).read_text(encoding="utf-8")
    assert text.count("could not be trusted") == 1 and "NOT reached" in text


@pytest.mark.parametrize("columns", ["80", "120"])
def test_command_shows_each_figure_of_the_attacks_and_whether_their_controls_hold(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setattr(attack, "measure", lambda *_, **__: measured.attacks)
    monkeypatch.setenv("COLUMNS", columns)
    model = copy_of(measured.model, tmp_path)
    shown = CliRunner().invoke(app, ["attack", str(model), "--members", str(measured.site.folder)]).stdout
    assert shown.count("so this measurement can find a leak") == 2 and "|" not in shown, "no Markdown"
    for of_loss in measured.attacks.membership.values():
        assert all(part in shown for part in str(of_loss.auroc).split())
    for inversion in measured.attacks.inversion:
        assert f"{inversion.best_db:.1f}" in shown


def copy_of(model: Path, folder: Path) -> Path:
    (folder / "model").mkdir()
    for file in model.iterdir():
        (folder / "model" / file.name).write_bytes(file.read_bytes())
    return folder / "model"
