"""Tests of the study settings and of the templates that people edit."""

import tomllib
from pathlib import Path

import pytest
import torch

import configs
from configs import usual_studies
from federation.approval.studies import study_digest
from federation.protocol.study_config import AggregationTable, ComputeNeed, Study
from models.compute import PROCESSOR, Compute
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.site.folder import PrivacyTable, SiteSettings
from pipeline.training.privacy_budget import epsilon_of, step_costs

FOLDER = Path(configs.__file__).parent


def test_the_study_template_shows_the_defaults():
    study = load_settings(FOLDER / "study.toml", Study)
    assert study == Study(study=study.study, aggregation=AggregationTable(summed_answers=True))


def test_the_site_template_shows_the_defaults():
    site = load_settings(FOLDER / "site.toml", SiteSettings)
    plain = SiteSettings.model_validate(
        {
            "site": {"name": site.site.name},
            "laboratory": {"file": site.laboratory.file},
            "outcomes": {"file": site.outcomes.file},
            "gateway": {"studies": usual_studies()},
        }
    )
    assert site == plain


def test_demo_study_is_valid_and_marked_synthetic():
    assert load_settings(FOLDER / "demo.toml", Study).study.synthetic


def test_rounds_share_one_training_schedule():
    study = load_settings(FOLDER / "demo.toml", Study)
    epochs = [study.schedule(number) for number in range(1, study.study.rounds + 1)]
    assert [e.first_epoch for e in epochs] == list(range(0, study.total_epochs, study.study.local_epochs))
    assert {e.total_epochs for e in epochs} == {study.total_epochs}


def test_quorum_above_the_number_of_sites_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[study]\nname = "x"\nrounds = 1\nsites = 2\nquorum = 3\n')
    with pytest.raises(Refusal) as caught:
        load_settings(path, Study)
    assert caught.value.code == "E_SETTINGS_KEY"


@pytest.mark.parametrize("key", ["wait_s", "round_timeout_s"])
def test_an_endless_wait_is_refused(key: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f'[study]\nname = "x"\nrounds = 1\nsites = 2\nquorum = 2\n{key} = inf\n')
    with pytest.raises(Refusal, match="E_SETTINGS_KEY"):
        load_settings(path, Study)


@pytest.mark.parametrize(
    ("per_round", "quorum", "says"),
    [(4, 2, "sites_per_round"), (2, 3, "quorum"), (-1, 2, "sites_per_round")],
)
def test_sites_per_round_must_allow_the_quorum(tmp_path, per_round, quorum, says):
    path = tmp_path / "study.toml"
    table = f'[study]\nname = "x"\nrounds = 1\nsites = 3\nsites_per_round = {per_round}\nquorum = {quorum}\n'
    path.write_text(table)
    with pytest.raises(Refusal, match=says) as caught:
        load_settings(path, Study)
    assert caught.value.code == "E_SETTINGS_KEY"
    path.write_text(table.replace(f"sites_per_round = {per_round}", "sites_per_round = 3"))
    assert load_settings(path, Study).study.asked_a_round == 3


@pytest.mark.parametrize("window", ["[200, -1000]", "[200, 200]", "[nan, 200]", "[-inf, 200]", "[5000, 6000]"])
def test_study_with_a_window_that_shows_no_lungs_is_refused(tmp_path, window):
    path = tmp_path / "study.toml"
    table = '[study]\nname = "x"\nrounds = 1\nsites = 3\nquorum = 2\n[preprocessing]\n'
    path.write_text(f"{table}window_hu = {window}\n")
    with pytest.raises(Refusal, match="window_hu") as caught:
        load_settings(path, Study)
    assert caught.value.code == "E_SETTINGS_KEY"


@pytest.mark.parametrize("seeds", ["[-1]", "[1, 4294967296]", f"[{2**31}]"])
def test_each_of_several_seeds_has_the_range_of_one(tmp_path, seeds):
    path = tmp_path / "study.toml"
    path.write_text(f'[study]\nname = "x"\nrounds = 1\nsites = 3\nquorum = 2\nseeds = {seeds}\n')
    with pytest.raises(Refusal, match=r"study\.seeds") as caught:
        load_settings(path, Study)
    assert caught.value.code == "E_SETTINGS_KEY"
    path.write_text(path.read_text().replace(seeds, f"[0, {2**31 - 1}]"))
    assert load_settings(path, Study).study.seeds == (0, 2**31 - 1)


PRIVATE = """
[study]
name = "x"
rounds = 4
local_epochs = 3
sites = 2
quorum = 2

[network]
norm = "group"

[privacy]
noise_multiplier = 1.5
sample_rate = 0.1
"""


def test_unknown_wire_precision_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    text = '[study]\nname = "x"\nrounds = 1\nsites = 2\nquorum = 2\n[wire]\nprecision = "{}"\n'
    path.write_text(text.format("float16"))
    assert load_settings(path, Study).wire.precision == "float16"
    path.write_text(text.format("bfloat16"))
    with pytest.raises(Refusal) as caught:
        load_settings(path, Study)
    assert (caught.value.code, "precision" in caught.value.says) == ("E_SETTINGS_KEY", True)


def private_study(tmp_path, text=PRIVATE):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return load_settings(path, Study)


def test_private_round_is_charged_for_all_its_steps(tmp_path):
    study = private_study(tmp_path)
    planned = study.private_round
    assert (planned.noise_multiplier, planned.sample_rate, planned.steps) == (1.5, 0.1, 30)
    assert planned.delta == study.privacy.delta
    assert Study.model_validate_json(study.model_dump_json()) == study, "the settings survive JSON serialisation"
    assert private_study(tmp_path, PRIVATE.partition("[privacy]")[0]).private_round is None


def test_study_template_shows_a_valid_private_study(tmp_path):
    text = (FOLDER / "study.toml").read_text()
    settings = text[text.index("# [privacy]") :].replace("# ", "", 1).replace("\n# ", "\n")
    assert private_study(tmp_path, PRIVATE.partition("[privacy]")[0] + settings).privacy.noise_multiplier == 1.5


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ('norm = "group"', 'norm = "batch"', "group"),
        ('norm = "group"', "", "group"),
        ("noise_multiplier = 1.5", "", "noise_multiplier"),
        ("noise_multiplier = 1.5", "noise_multiplier = 0.0", "noise_multiplier"),
        ("sample_rate = 0.1", "sample_rate = 2", "sample_rate"),
        ("sample_rate = 0.1", "sample_rate = 0.1\nepsilon = 8", "epsilon"),
    ],
)
def test_invalid_settings_of_a_private_study_are_refused(tmp_path, right, wrong, says):
    with pytest.raises(Refusal) as caught:
        private_study(tmp_path, PRIVATE.replace(right, wrong))
    assert caught.value.code == "E_SETTINGS_KEY"
    assert says in caught.value.says


SECURE = """
[study]
name = "masked"
rounds = 2
sites = 3
quorum = 3

[strategy]
name = "FedAvg"

[aggregation]
secure = true
"""


def secure_study(tmp_path, text=SECURE):
    (tmp_path / "study.toml").write_text(text)
    return load_settings(tmp_path / "study.toml", Study)


def test_last_round_of_a_masked_study_is_not_in_the_model(tmp_path):
    masked = secure_study(tmp_path)
    plain = secure_study(tmp_path, SECURE.partition("[aggregation]")[0])
    assert masked.kept_epochs(masked.study.rounds) == (masked.study.rounds - 1) * masked.study.local_epochs
    assert plain.kept_epochs(plain.study.rounds) == plain.total_epochs == masked.total_epochs


def test_study_with_secure_aggregation_is_valid(tmp_path):
    assert secure_study(tmp_path).aggregation.secure
    assert not secure_study(tmp_path, SECURE.partition("[aggregation]")[0]).aggregation.secure


def in_groups(count, sites):
    text = SECURE.replace("sites = 3", f"sites = {sites}")
    return text.replace("secure = true", f"secure = true\ngroups = {count}")


def test_study_with_groups_is_valid(tmp_path):
    assert secure_study(tmp_path).aggregation.groups == 0
    assert secure_study(tmp_path, in_groups(3, 9)).aggregation.groups == 3
    assert secure_study(tmp_path, in_groups(5, 17)).aggregation.groups == 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (in_groups(3, 8), "at least 9 sites"),
        (in_groups(4, 12), "odd number"),
        (in_groups(1, 9), "odd number"),
        (in_groups(3, 9).replace("secure = true", "secure = false"), "needs secure = true"),
    ],
)
def test_groups_that_cannot_outvote_one_are_refused(tmp_path, text, says):
    with pytest.raises(Refusal) as caught:
        secure_study(tmp_path, text)
    assert caught.value.code == "E_SETTINGS_KEY"
    assert says in caught.value.says


def test_masked_study_may_be_private(tmp_path):
    private = '[network]\nnorm = "group"\n[privacy]\nnoise_multiplier = 1.5\nsample_rate = 0.1\n'
    assert secure_study(tmp_path, SECURE + private).private_round is not None


@pytest.mark.parametrize("name", ["CenteredClip", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan"])
def test_strategies_that_compare_single_updates_are_refused_with_masks(tmp_path, name):
    with pytest.raises(Refusal, match=f"E_SETTINGS_KEY.*{name} compares single updates"):
        secure_study(tmp_path, SECURE.replace("FedAvg", name))


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("sites = 3\nquorum = 3", "sites = 2\nquorum = 2", "at least 3"),
        ("quorum = 3", "quorum = 2", "at least 3"),
        ("sites = 3", "sites = 101", "at most 100 sites"),
        ("sites = 3", "sites = 5\nsites_per_round = 4", "sites_per_round"),
        ("secure = true", "secure = true\n[evaluation]\nleave_one_out = true", "leave_one_out"),
        ("secure = true", "secure = true\n[evaluation]\nlocal_models = true", "local_models"),
        ("secure = true", "secure = true\n[evaluation]\nfine_tune = true", "fine_tune"),
        ("secure = true", 'secure = true\n[wire]\nprecision = "float16"', "float32"),
        ("rounds = 2", "rounds = 1", "at least 2 rounds"),
    ],
)
def test_settings_that_a_sum_cannot_serve_are_refused(tmp_path, right, wrong, says):
    with pytest.raises(Refusal) as caught:
        secure_study(tmp_path, SECURE.replace(right, wrong))
    assert caught.value.code == "E_SETTINGS_KEY"
    assert says in caught.value.says


# --- what a study needs of a processor --------------------------------------------------------------------

PLAIN = {"study": {"name": "x", "rounds": 1, "sites": 2, "quorum": 2}}


def test_study_without_needs_keeps_its_digest():
    """Hospitals approve a study by this digest, and benchmarks cache results by it."""
    plain = Study.model_validate(PLAIN)
    assert "compute" not in plain.model_dump() and "compute" not in plain.model_dump_json()
    assert Study.model_validate({**PLAIN, "compute": {}}).model_dump_json() == plain.model_dump_json()
    tables = set(plain.model_dump())
    before = {"study", "strategy", "network", "preprocessing", "training", "wire", "aggregation", "privacy", "stopping"}
    assert tables == before | {"evaluation"}, "the tables that existed before [compute]"


@pytest.mark.parametrize("need", [{"device": "cuda"}, {"precision": "fp32"}, {"gpu_memory_gb": 16}])
def test_need_is_sent_and_changes_the_digest(need):
    study = Study.model_validate({**PLAIN, "compute": need})
    assert Study.model_validate_json(study.model_dump_json()) == study
    assert study.model_dump()["compute"] == {**ComputeNeed().model_dump(), **need}
    plain = Study.model_validate(PLAIN)
    assert study_digest(study.model_dump_json()) != study_digest(plain.model_dump_json())


def test_study_template_shows_the_needs(tmp_path):
    text = (FOLDER / "study.toml").read_text()
    shown = text[text.index("# [compute]") :].partition("\n\n")[0].replace("# ", "", 1).replace("\n# ", "\n")
    path = tmp_path / "study.toml"
    path.write_text(PRIVATE.partition("[network]")[0] + shown)
    assert load_settings(path, Study).compute == ComputeNeed()
    assert all(f"{key} =" in shown for key in ComputeNeed.model_fields)


def test_needs_are_compared_with_the_processor(monkeypatch):
    gpu = Compute(torch.device("cuda", 0))
    monkeypatch.setattr(Compute, "memory_gb", lambda self: 24.0)
    exact = Compute(precision="fp32")
    assert not ComputeNeed().unmet_by(PROCESSOR)
    assert ComputeNeed(device="cuda").unmet_by(exact) == "a GPU"
    assert not ComputeNeed(device="cuda", gpu_memory_gb=16).unmet_by(gpu)
    assert ComputeNeed(gpu_memory_gb=40).unmet_by(gpu) == "a GPU with 40 GB"
    assert not ComputeNeed(gpu_memory_gb=40).unmet_by(exact), "only of a GPU"
    assert ComputeNeed(precision="fp32").unmet_by(Compute(precision="fp16")) == "fp32"
    assert not ComputeNeed(precision="fp32").unmet_by(exact)


def test_private_preset_has_the_settings_of_its_page():
    page = (FOLDER.parent / "docs" / "differential-privacy.md").read_text()
    block = page[page.index("    [network]") : page.index("These are the settings of the preset `private`")]
    said = tomllib.loads("\n".join(line for line in block.splitlines() if line.startswith("    ") or not line))
    study = load_settings(FOLDER / "presets" / "private.toml", Study).model_dump()
    assert set(said) == {"network", "training", "privacy"}
    for table, values in said.items():
        assert values == {name: study[table][name] for name in values}


def test_run_of_the_private_preset_spends_half_of_a_hospitals_default_budget_as_its_page_says():
    study = load_settings(FOLDER / "presets" / "private.toml", Study)
    planned, limits = study.private_round, PrivacyTable()
    costs = study.study.rounds * planned.steps * step_costs(planned.noise_multiplier, planned.sample_rate)
    spent = [epsilon_of(runs * costs, limits.max_delta) for runs in (1, 2, 3, 4)]
    assert spent[0] < 0.5 * limits.max_epsilon
    page = (FOLDER.parent / "docs" / "differential-privacy.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| ε spent at"))
    assert [cell.split(":")[0].strip() for cell in row.split("|")[2:-1]] == [f"{each:.2f}" for each in spent]
    assert spent[2] < limits.max_epsilon < spent[3], "the page says that a hospital can take part in three"
    assert f"{epsilon_of(costs, planned.delta):.2f}" in page
