"""Tests of a study that starts from a release: the release must fit and its weights must be plausible."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from federation.coordinator.rounds import Training
from federation.gateway.first_model import write_chunks
from federation.gateway.schema import first_model_of, schema_of
from federation.protocol.first_weights import begin_network, begun_sites, bring_encoder, bring_release
from federation.protocol.flat_weights import pack
from federation.protocol.release_files import BEGINS_FROM, copy_release
from federation.protocol.study_config import Study
from models.encoders import Encoder
from models.network import HEAD_RMS, SeverityNetwork, build_network
from models.refusal import Refusal
from models.release import save_release
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.adapting import adaptation
from tests.helpers.descriptions import description, provenance
from tests.helpers.encoders import small_encoder, tuned_on

TABLES: dict[str, Any] = {
    "study": {"name": "trial", "rounds": 4, "sites": 2, "quorum": 2},
    "network": {"architecture": "resnet10", "widen_factor": 0.0625},
    "preprocessing": {"shape": (16, 16, 16), "working_spacing_mm": 8.0},
}
STUDY = Study.model_validate(TABLES)


def study_from(sha256: str, **tables: Any) -> Study:
    changed = {**TABLES, **tables}
    return Study.model_validate({**changed, "study": {**changed["study"], "begin_from": sha256}})


def another_network(change: Callable[[SeverityNetwork], None] = lambda _: None) -> SeverityNetwork:
    network = build_network(STUDY.network, seed=7)
    with torch.no_grad():
        change(network)
    return network


def make_release(releases: Path, network: SeverityNetwork, /, **about: Any) -> str:
    """Save a release in a folder of arbitrary name below `releases`. Returns its SHA-256."""
    fields = {"network": STUDY.network, "preprocessing": STUDY.preprocessing.model_dump(mode="json")}
    return save_release(
        releases / f"any-{len(list(releases.glob('*')))}", network, description(**fields | about)
    ).sha256


def begun(tmp_path: Path, network: SeverityNetwork, /, **about: Any) -> tuple[str, Path]:
    """Create a release and copy it. Returns its SHA-256 and the folder of the run or site that has the copy."""
    sha256 = make_release(tmp_path / "releases", network, **about)
    (made,) = (tmp_path / "releases").glob("*")
    assert copy_release(made, tmp_path / "here") == sha256
    return sha256, tmp_path / "here"


def code(function: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(Refusal) as refused:
        function(*arguments)
    return refused.value.code


def test_first_weights_come_from_the_seed_without_a_release(tmp_path: Path) -> None:
    first = begin_network(STUDY, tmp_path).state_dict()
    assert all(torch.equal(first[k], v) for k, v in build_network(STUDY.network, seed=1).state_dict().items())


def test_first_weights_are_those_of_the_release(tmp_path: Path) -> None:
    def train(network: SeverityNetwork) -> None:
        """Change counters and running moments, as training does."""
        network(torch.rand(4, 2, 16, 16, 16), torch.zeros(4, 4))

    trained = another_network(train)
    sha256, folder = begun(tmp_path, trained)
    network = begin_network(study_from(sha256), folder)
    assert network.training
    assert all(torch.equal(network.state_dict()[k], v) for k, v in trained.state_dict().items())
    assert int(network.state_dict()["backbone.bn1.num_batches_tracked"]) == 1


def lengthen(network: SeverityNetwork) -> None:
    network.head.weight.mul_(100)


def change_fixed(network: SeverityNetwork) -> None:
    network.tabular[0].bias[0] += 1e-3


def poison(network: SeverityNetwork) -> None:
    network.head.bias[0] = float("nan")


@pytest.mark.parametrize("change", [lengthen, change_fixed, poison])
def test_weights_that_training_cannot_produce_are_refused(
    tmp_path: Path, change: Callable[[SeverityNetwork], None]
) -> None:
    sha256, folder = begun(tmp_path, another_network(change))
    assert code(begin_network, study_from(sha256), folder) == "E_BEGIN_UNLIKE"


def test_age_and_sex_weights_are_limited_as_in_training(tmp_path: Path) -> None:
    def stretch(network: SeverityNetwork) -> None:
        network.head.weight[:, network.features :] = 0.55

    sha256, folder = begun(tmp_path, another_network(stretch))
    network = begin_network(study_from(sha256), folder)
    rms = network.head.weight.detach()[:, network.features :].square().mean().sqrt()
    assert float(rms) == pytest.approx(HEAD_RMS)


@pytest.mark.parametrize(
    "tables",
    [{"network": {"architecture": "resnet10", "widen_factor": 0.125}}, {"preprocessing": {"shape": (8, 8, 8)}}],
)
def test_release_of_another_network_or_preprocessing_is_refused(tmp_path: Path, tables: dict[str, Any]) -> None:
    sha256, folder = begun(tmp_path, another_network())
    assert code(begin_network, study_from(sha256, **tables), folder) == "E_BEGIN_UNLIKE"


def test_release_that_one_hospital_adapted_is_refused(tmp_path: Path) -> None:
    """Its statistics are of patients who take part in no study."""
    sha256, folder = begun(tmp_path, another_network(), adaptation=adaptation())
    assert code(begin_network, study_from(sha256), folder) == "E_BEGIN_UNLIKE"


def test_release_under_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    sha256, folder = begun(tmp_path, another_network())
    (folder / sha256).rename(folder / ("0" * 64))
    assert code(begin_network, study_from("0" * 64), folder) == "E_BEGIN_UNLIKE"


def test_altered_or_missing_release_is_refused(tmp_path: Path) -> None:
    sha256, folder = begun(tmp_path, another_network())
    weights = folder / sha256 / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert code(begin_network, study_from(sha256), folder) == "E_MODEL_ALTERED"
    assert code(begin_network, study_from("1" * 64), folder) == "E_NO_MODEL"


@pytest.mark.parametrize("name", ["../../etc/passwd", "ABCDEF" * 10 + "0000", "1" * 63, "1" * 64 + "\n"])
def test_name_that_is_not_a_sha256_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        study_from(name)


@pytest.mark.parametrize(
    "tables",
    [
        {"privacy": {"noise_multiplier": 1.0, "sample_rate": 0.1}, "network": {"norm": "group"}},
        {"evaluation": {"local_models": True}},
        {"evaluation": {"leave_one_out": True}},
        {"evaluation": {"pooled": True}},
    ],
)
def test_options_that_ignore_earlier_training_are_refused_with_a_release(tables: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="begin_from"):
        study_from("1" * 64, **tables)


def test_release_is_copied_into_the_run(tmp_path: Path) -> None:
    releases = tmp_path / "server" / "releases"
    wanted, _ = make_release(releases, another_network()), make_release(releases, another_network(lengthen))
    run = tmp_path / "server" / "runs" / "trial-00000000"
    bring_release(study_from(wanted), tmp_path / "server", run)
    assert [path.name for path in (run / BEGINS_FROM).iterdir()] == [wanted]
    begin_network(study_from(wanted), run / BEGINS_FROM)


def test_unknown_or_unsuitable_release_is_not_copied(tmp_path: Path) -> None:
    unlike = make_release(tmp_path / "releases", another_network(lengthen))
    assert code(bring_release, study_from("1" * 64), tmp_path, tmp_path / "run") == "E_BEGIN_UNKNOWN"
    assert code(bring_release, study_from(unlike), tmp_path, tmp_path / "run") == "E_BEGIN_UNLIKE"
    bring_release(STUDY, tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_sites_of_the_release_are_listed(tmp_path: Path) -> None:
    sha256, folder = begun(tmp_path, another_network(), provenance=provenance(north=True, coast=False))
    assert begun_sites(study_from(sha256), folder) == ["north"]
    assert begun_sites(STUDY, folder) == []


@pytest.mark.slow
def test_gateway_computes_the_first_model_of_the_release(tmp_path: Path) -> None:
    sha256, folder = begun(tmp_path, another_network())
    study = study_from(sha256)
    text = study.model_dump_json()
    weights, buffers = pack(another_network())
    heads = write_chunks({"arrays": weights, "buffers": buffers})
    schema_of(text, tmp_path / "schemas", folder)
    for kept in (tmp_path / "schemas").glob("*.first"):
        shutil.rmtree(kept)  # as if it were lost: it is computed again
    found = first_model_of(text, tmp_path / "schemas", folder)
    assert all(found.read(chunk) for head in found.heads["arrays"].values() for chunk in head.chunks)
    assert {name: head.chunks for name, head in found.heads["arrays"].items()} == {
        name: head.chunks for name, head in heads["arrays"].items()
    }
    assert (
        schema_of(STUDY.model_dump_json(), tmp_path / "schemas", folder).first_model
        != schema_of(text, tmp_path / "schemas", folder).first_model
    )


@pytest.mark.slow
def test_gateway_refuses_an_unsuitable_release(tmp_path: Path) -> None:
    sha256, folder = begun(tmp_path, another_network(lengthen))
    text = study_from(sha256).model_dump_json()
    assert code(schema_of, text, tmp_path / "schemas", folder) == "E_BEGIN_UNLIKE"


def test_training_starts_with_the_weights_of_the_release(tmp_path: Path) -> None:
    sha256, folder = begun(tmp_path, another_network())
    training = Training(study_from(sha256), tmp_path / "checkpoints", "run", begins_from=folder)
    expected, _ = pack(another_network())
    assert all((training.state.arrays[name] == array).all() for name, array in expected.items())


def tuned_study(encoder: Encoder, **table: Any) -> Study:
    study = {**TABLES["study"], **table}
    return Study.model_validate(
        {
            **TABLES,
            "study": study,
            "network": tuned_on(encoder, 1),
            "training": {"augment": False},
            "preprocessing": encoder.card.preprocessing,
        }
    )


def test_tuned_stages_begin_with_the_encoder_or_with_a_release_that_tuned_it(tmp_path: Path) -> None:
    encoder = small_encoder(tmp_path / "made", Preprocessing(shape=(16, 16, 16)), name="of first weights")
    study = tuned_study(encoder)
    assert code(begin_network, study, tmp_path) == "E_ENCODER_CLOSED"
    assert code(bring_encoder, study, tmp_path / "server", tmp_path / "run") == "E_ENCODER_CLOSED"
    shutil.copytree(tmp_path / "made", tmp_path / "server" / "encoders" / "any")
    bring_encoder(study, tmp_path / "server", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "encoders").iterdir()} == {encoder.card.sha256}
    network = begin_network(study, tmp_path)
    first = network.state_dict()
    known = encoder.layers.state_dict()
    assert all(torch.equal(known[name.removeprefix("backbone.")], first[name]) for name in first if "layer4" in name)
    fields = {"network": study.network, "preprocessing": study.preprocessing.model_dump(mode="json")}
    with torch.no_grad():
        network.backbone.layer4[0].conv1.weight.mul_(1.1)
    sha256, folder = begun(tmp_path, network, **fields)
    again = begin_network(tuned_study(encoder, begin_from=sha256), folder).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        network.backbone.layer4[0].conv1.weight.mul_(100)
    (tmp_path / "releases").rename(tmp_path / "before")
    sha256, folder = begun(tmp_path, network, **fields)
    assert code(begin_network, tuned_study(encoder, begin_from=sha256), folder) == "E_BEGIN_UNLIKE"
