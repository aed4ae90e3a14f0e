"""Features of a frozen encoder: computed once for each scan, kept with the cohort, and deleted with it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from models.encoders import Encoder
from models.refusal import Refusal
from pipeline.cohort.dataset import Examples
from pipeline.cohort.encoding import encode_cohort
from pipeline.cohort.store import Cohort
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site
from tests.helpers.encoders import FEATURES, small_encoder

SMALL = Preprocessing(method=1, shape=(16, 16, 16))
PATIENTS = 6


def silent(done: int, total: int) -> None:
    """Show no progress."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = synthetic_site(tmp_path_factory.mktemp("made") / "north", "north", seed=1, min_patients=3)
    write_cohort(site, HOSPITALS[0], patients=PATIENTS, seed=1, settings=SMALL, anatomy="template")
    return site.folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Site:
    shutil.copytree(made, tmp_path / "north")
    return Site.open(tmp_path / "north")


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return small_encoder(tmp_path / "encoder", SMALL)


def files(site: Site, encoder: Encoder) -> dict[str, float]:
    """Return the features' files with the times at which they were written."""
    folder = site.cohort_folder / "encoded" / encoder.card.sha256
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_features_are_computed_once_and_are_those_of_the_scans(site: Site, encoder: Encoder) -> None:
    seen: list[tuple[int, int]] = []
    assert encode_cohort(site, encoder, lambda *at: seen.append(at)) == PATIENTS
    assert seen[0] == (0, PATIENTS) and seen[-1] == (PATIENTS, PATIENTS)
    first = files(site, encoder)
    assert encode_cohort(site, encoder, silent) == 0
    assert files(site, encoder) == first
    with Cohort.read(site) as cohort:
        plain = Examples(cohort.examples("train", "validation", "test"))
        encoded = Examples(cohort.examples("train", "validation", "test", encoder=encoder.card.sha256))
        cohort.require_encoded(encoder.card.sha256)
    index = np.arange(PATIENTS)
    features = encoded.batch(index, lambda scan: scan * 0)[0]
    assert features.shape == (PATIENTS, FEATURES)
    np.testing.assert_allclose(features, encoder.encode(plain.batch(index, None)[0]), atol=1e-6)
    np.testing.assert_array_equal(encoded.scans(index), plain.batch(index, None)[0])


def test_study_without_the_features_is_refused(site: Site, encoder: Encoder) -> None:
    encode_cohort(site, encoder, silent)
    one = next((site.cohort_folder / "encoded" / encoder.card.sha256).iterdir())
    one.unlink()
    with Cohort.read(site) as cohort, pytest.raises(Refusal, match=f"E_NOT_ENCODED.*1 of the site's {PATIENTS}"):
        cohort.require_encoded(encoder.card.sha256)
    assert encode_cohort(site, encoder, silent) == 1
    one.write_bytes(one.read_bytes()[:-1])
    assert encode_cohort(site, encoder, silent) == 1, "damaged features are computed again"


def test_interruption_loses_no_features(site: Site, encoder: Encoder) -> None:
    def stops(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_cohort(site, encoder, stops)
    kept = files(site, encoder)
    assert 0 < len(kept) < PATIENTS
    assert encode_cohort(site, encoder, silent) == PATIENTS - len(kept)
    assert kept.items() <= files(site, encoder).items()


def test_features_are_deleted_with_their_scan(site: Site, encoder: Encoder) -> None:
    encode_cohort(site, encoder, silent)
    with Cohort(site) as cohort:
        patient, *others = cohort.patients()
        kept = cohort.fingerprints(without={patient.tensor})
        cohort.replace(others, [], kept)
        cohort.sweep()
    assert patient.tensor not in files(site, encoder) and len(files(site, encoder)) == PATIENTS - 1
    everything = [path.name for path in site.cohort_folder.rglob("*")]
    assert patient.tensor not in everything


def test_encoder_for_another_preprocessing_is_refused(site: Site, tmp_path: Path) -> None:
    other = small_encoder(tmp_path / "other", Preprocessing(method=1, shape=(24, 24, 24)))
    with pytest.raises(Refusal, match="E_PREPROCESSING"):
        encode_cohort(site, other, silent)
