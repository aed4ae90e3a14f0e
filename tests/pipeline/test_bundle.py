"""Tests of a release as a MONAI bundle: MONAI loads it and gives our scorer's result. The scan is synthetic."""

import json
import shutil
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from pydicom import dcmread

from models.calibration import Platt
from models.familiarity import APPEARANCE_SIZE, Familiarity
from models.network import SeverityNetwork, build_network
from models.network_settings import LABELS, NetworkSettings
from models.refusal import Refusal
from models.release import Release, load_release, save_release
from pipeline.bundle import INFERENCE, METADATA, MODEL, Calibrate, ReadScan, write_bundle
from pipeline.scoring.score import score
from tests.helpers.descriptions import description

# Fields required by the MONAI bundle specification and its schema of 2024-07-25.
TENSOR = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")
REQUIRED = (
    *("schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task"),
    *("description", "authors", "copyright", "network_data_format"),
)
FORMATS = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {
        "required": TENSOR,
        "properties": {
            "num_channels": {"type": "integer"},
            "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
            "value_range": {"type": "array", "items": {"type": "number"}},
            "is_patch_data": {"type": "boolean"},
            "channel_def": {"type": "object"},
        },
    },
}
SCHEMA = {
    "required": REQUIRED,
    "properties": {
        **{name: {"type": "string"} for name in REQUIRED if name not in ("network_data_format",)},
        "required_packages_version": {"type": "object"},
        "changelog": {"type": "object"},
        "intended_use": {"type": "string"},
        "network_data_format": {
            "required": ["inputs", "outputs"],
            "properties": dict.fromkeys(("inputs", "outputs", "post_processed_outputs"), FORMATS),
        },
    },
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Release]:
    """A release with random weights; one training pass changes its buffers from their initial values."""
    folder = tmp_path_factory.mktemp("bundles") / "model"
    settings = NetworkSettings(architecture="resnet10", widen_factor=0.125)
    network = build_network(settings, seed=3).train()
    network(torch.randn(4, 2, 16, 16, 16), torch.zeros(4, 4))
    platt = {label: Platt(slope=0.7, intercept=0.4) for label in LABELS}
    release = save_release(folder, network, description(network=settings, calibration=platt))
    write_bundle(folder, release)
    return folder, load_release(folder)


@pytest.fixture(scope="module")
def scan(small_hospital: Path) -> Path:
    truth = json.loads((small_hospital / "truth.json").read_text())
    return small_hospital / "ct" / next(p["patient_id"] for p in truth["patients"] if p["defect"] is None)


def load(folder: Path) -> SeverityNetwork:
    return monai.bundle.load(
        folder.name, bundle_dir=folder.parent, workflow_type="inference", source="github", device="cpu"
    )


def test_monai_loads_our_network_and_weights(bundle: tuple[Path, Release], scan: Path) -> None:
    folder, release = bundle
    network = load(folder)
    assert isinstance(network, SeverityNetwork)
    ours = release.network.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in network.state_dict().items())
    network.eval()
    config = json.loads((folder / INFERENCE).read_text())
    seen = ReadScan(config["preprocessing"]["settings"])(scan)
    with torch.inference_mode():
        logits = network(seen["image"][None], seen["tabular"][None])[0]
    answer = Calibrate(config["postprocessing"]["calibration"])(logits)
    assert answer == pytest.approx(score(scan, release).probabilities, abs=1e-9)


def test_monai_inference_equals_our_scorer(
    bundle: tuple[Path, Release], scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(bundle[0], tmp_path / "moved")
    monai.bundle.run(
        config_file=str(folder / INFERENCE),
        workflow_type="inference",
        bundle_root=str(folder),
        dataset_dir=str(scan),
    )
    answer = json.loads(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{")))
    assert answer == pytest.approx(score(scan, bundle[1]).probabilities, abs=1e-9)


def test_bundle_refuses_the_scans_that_our_scorer_refuses(
    bundle: tuple[Path, Release], scan: Path, tmp_path: Path
) -> None:
    release = bundle[1]
    strict = Familiarity(mean=(0.0,) * APPEARANCE_SIZE, variance=(1.0,) * APPEARANCE_SIZE, limit=1e-3, sites=3)
    described = release.description.model_copy(update={"familiarity": strict})
    write_bundle(tmp_path / "strict", save_release(tmp_path / "strict", release.network, described))
    config = json.loads((tmp_path / "strict" / INFERENCE).read_text())
    given = {name: value for name, value in config["preprocessing"].items() if name != "_target_"}
    with pytest.raises(Refusal, match="E_UNFAMILIAR"):
        ReadScan(**given)(scan)
    every_second = shutil.copytree(scan, tmp_path / "scan")
    for file in list(every_second.iterdir()):
        if dcmread(file, stop_before_pixels=True).InstanceNumber % 2:
            file.unlink()
    for refused in (lambda: score(every_second, release), lambda: ReadScan(given["settings"])(every_second)):
        with pytest.raises(Refusal, match="E_SLICES_MISSING"):
            refused()


def test_bundle_of_an_earlier_version_gives_no_number_for_a_label_without_calibration() -> None:
    identity, known = Platt().model_dump(), Platt(slope=0.7, intercept=0.4).model_dump()
    assert set(Calibrate({"severe": identity, "pcr_positive": known})(torch.zeros(2))) == {"pcr_positive"}
    for none in ({}, {"severe": identity}):
        with pytest.raises(Refusal, match="E_LABELS_NOT_JUDGED"):
            Calibrate(none)(torch.zeros(2))


def test_metadata_passes_monai_schema(bundle: tuple[Path, Release], tmp_path: Path) -> None:
    folder, release = bundle
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))  # MONAI does not download a schema that already exists

    def check(file: Path) -> None:
        monai.bundle.verify_metadata(meta_file=str(file), filepath=str(tmp_path / "schema.json"))

    check(folder / METADATA)
    content: dict[str, Any] = json.loads((folder / METADATA).read_text())
    assert "Not a medical device" in content["intended_use"] and "SYNTHETIC" in content["description"]
    assert content["version"].endswith(release.sha256[:12])
    (image, tabular) = content["network_data_format"]["inputs"].values()
    assert image["spatial_shape"] == release.description.preprocessing["shape"]
    assert (image["num_channels"], tabular["num_channels"]) == (2, 4)
    content["network_data_format"]["outputs"]["pred"].pop("dtype")
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="dtype"):
        check(tmp_path / "metadata.json")


def test_torch_file_contains_only_tensors(bundle: tuple[Path, Release]) -> None:
    folder, release = bundle
    content = torch.load(folder / MODEL, weights_only=True)
    assert type(content) is dict
    assert content.keys() == release.network.state_dict().keys()
