"""Tests of `fedthorax node encoders | approve-encoder | revoke-encoder | encode` and `study make-encoder | encoder`."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from federation.cli.node import app as node
from federation.cli.study import app as study
from federation.protocol.study_config import Study
from models.encoder_layers import ResNetLayers
from models.encoders import build_layers, load_encoder
from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import save_release
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site, init_site, site_settings
from tests.helpers.descriptions import description
from tests.helpers.encoders import small_encoder
from tests.models.test_encoders import foreign


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return init_site(tmp_path / "site", site_settings(None, name="hospital-a"))


def run(app: object, *arguments: str | Path, answer: str = "") -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=answer)  # type: ignore[arg-type]


def code(result: Result) -> str:
    assert isinstance(result.exception, Refusal), result.output
    return result.exception.code


def test_encoder_is_shown_approved_listed_and_revoked(site: Site, tmp_path: Path) -> None:
    name = small_encoder(tmp_path / "encoder", Preprocessing()).card.sha256
    assert run(node, "approve-encoder", site.folder, tmp_path / "encoder", answer="n\n").exit_code == 1
    assert run(node, "encoders", site.folder, "--json").stdout.strip() == "[]"
    shown = run(node, "approve-encoder", site.folder, tmp_path / "encoder", answer="y\n")
    assert shown.exit_code == 0, shown.output
    for part in (name, "random weights", "Apache-2.0", "resnet10", "scan and lung mask, axes SPL"):
        assert part in shown.stdout
    assert name[:12] in run(node, "encoders", site.folder).stdout
    (listed,) = json.loads(run(node, "encoders", site.folder, "--json").stdout)
    assert (listed["sha256"], listed["decided"]) == (name, "approved")
    assert code(run(node, "encode", site.folder)) == "E_NO_ENCODER", "there is no cohort yet"
    assert code(run(node, "revoke-encoder", site.folder, "0" * 12)) == "E_ENCODER_UNKNOWN"
    assert run(node, "revoke-encoder", site.folder, name[:12]).exit_code == 0
    assert code(run(node, "approve-encoder", site.folder, tmp_path)) == "E_ENCODER_FILES"


def test_encoder_of_a_release_is_named_in_a_study(tmp_path: Path) -> None:
    settings = NetworkSettings(architecture="resnet10", widen_factor=1 / 16)
    usual = Preprocessing().model_dump(mode="json")
    network = build_network(settings, seed=5).eval()
    save_release(tmp_path / "release", network, description(network=settings, preprocessing=usual))
    options = ("--name", "ours", "--licence", "Apache-2.0")
    made = run(study, "make-encoder", tmp_path / "release", tmp_path / "encoder", *options)
    assert made.exit_code == 0, made.output
    assert made.stdout == run(study, "encoder", tmp_path / "encoder").stdout
    tables = tomllib.loads(made.stdout)
    asked = Study.model_validate({"study": {"name": "heads", "rounds": 5, "sites": 3, "quorum": 3}, **tables})
    assert asked.network.encoder == load_encoder(tmp_path / "encoder").card.sha256
    assert asked.preprocessing == Preprocessing()


def test_weights_of_another_project(tmp_path: Path) -> None:
    layers = ResNetLayers(depth=10, conv1_t_stride=2, no_max_pool=True, shortcut_type="A", bias_downsample=False)
    torch.save(build_layers(foreign(layers)).state_dict(), tmp_path / "weights.pt")
    options = ["--name", "theirs", "--licence", "MIT", "--resnet", "10", "--stem-stride", "2", "--no-pool"]
    options += ["--shortcut", "A", "--no-bias", "--scale", "0.5"]
    without = run(study, "make-encoder", tmp_path / "weights.pt", tmp_path / "encoder", *options)
    assert without.exit_code == 2 and not (tmp_path / "encoder").exists()
    made = run(study, "make-encoder", tmp_path / "weights.pt", tmp_path / "encoder", *options, "--origin", "elsewhere")
    assert made.exit_code == 0, made.output
    card = load_encoder(tmp_path / "encoder").card
    assert (card.layers, card.channels, card.scale, card.source) == (layers, 1, 0.5, "elsewhere")


INFLATED = ResNetLayers(depth=10, conv1_t_size=(3, 7, 7), conv1_t_stride=(1, 2, 2), bias_downsample=False)
THEIRS = ("--name", "theirs", "--licence", "MIT", "--origin", "elsewhere", "--resnet", "10", "--no-bias")


def test_inflated_network_of_colour_images(tmp_path: Path) -> None:
    """Its study can tune it, too: the lines that are printed name its first convolution by axis."""
    tensors = build_layers(foreign(INFLATED)).state_dict()
    tensors["conv1.weight"] = tensors["conv1.weight"].repeat(1, 3, 1, 1, 1)
    torch.save(tensors, tmp_path / "weights.pt")
    options = [*THEIRS, "--stem", "3,7,7", "--stem-stride", "1,2,2", "--axes", "RAS"]
    made = run(study, "make-encoder", tmp_path / "weights.pt", tmp_path / "encoder", *options)
    assert made.exit_code == 0, made.output
    card = load_encoder(tmp_path / "encoder").card
    assert (card.layers, card.axes) == (INFLATED, "RAS")
    tables = tomllib.loads(run(study, "encoder", tmp_path / "encoder", "--tuned-stages", "1").stdout)
    asked = Study.model_validate({"study": {"name": "heads", "rounds": 5, "sites": 3, "quorum": 3}, **tables})
    assert asked.network.encoder_layers == INFLATED
    assert Study.model_validate(asked.model_dump(mode="json")) == asked


@pytest.mark.parametrize(
    "wrong",
    [
        ("--stem", "7x7"),
        ("--stem", "3,7"),
        ("--stem", "99"),
        ("--stem-stride", "3"),
        ("--axes", "RAX"),
        ("--axes", "RLS"),
        ("--resnet", "19"),
        ("--shortcut", "C"),
        ("--name", "/"),
        ("--scale", "1e9"),
        ("--scale", "0"),
        ("--scale", "nan"),
    ],
)
def test_options_that_make_no_encoder_are_explained(tmp_path: Path, wrong: tuple[str, str]) -> None:
    torch.save(build_layers(foreign(ResNetLayers(depth=10))).state_dict(), tmp_path / "weights.pt")
    made = run(study, "make-encoder", tmp_path / "weights.pt", tmp_path / "encoder", *THEIRS, *wrong)
    assert made.exit_code == 2 and isinstance(made.exception, SystemExit), made.output
    assert wrong[0] in made.output
    assert not (tmp_path / "encoder").exists()
