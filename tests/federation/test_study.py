"""Studies, and the files that people edit."""

from pathlib import Path

import pytest

import configs
from federation.study import Study
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.site import SiteSettings

FOLDER = Path(configs.__file__).parent


def test_the_study_template_shows_the_defaults():
    study = load_settings(FOLDER / "study.toml", Study)
    assert study == Study(study=study.study)


def test_the_site_template_shows_the_defaults():
    site = load_settings(FOLDER / "site.toml", SiteSettings)
    plain = SiteSettings.model_validate(
        {
            "site": {"name": site.site.name},
            "laboratory": {"file": site.laboratory.file},
            "outcomes": {"file": site.outcomes.file},
        }
    )
    assert site == plain


def test_the_demo_study_is_valid_and_called_synthetic():
    assert load_settings(FOLDER / "demo.toml", Study).study.synthetic


def test_rounds_share_one_schedule():
    study = load_settings(FOLDER / "demo.toml", Study)
    epochs = [study.schedule(number) for number in range(1, study.study.rounds + 1)]
    assert [e.first_epoch for e in epochs] == list(range(0, study.total_epochs, study.study.local_epochs))
    assert {e.total_epochs for e in epochs} == {study.total_epochs}


def test_a_quorum_above_the_number_of_sites_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[study]\nname = "x"\nrounds = 1\nsites = 2\nquorum = 3\n')
    with pytest.raises(Refusal) as caught:
        load_settings(path, Study)
    assert caught.value.code == "E_SETTINGS_KEY"
