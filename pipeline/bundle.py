"""A release as a MONAI bundle: the additional files of MONAI, and the classes that their configuration names.

    configs/metadata.json    description of inputs and outputs in MONAI's schema
    configs/inference.json   network, preprocessing, calibration: from one scan to probabilities
    models/model.pt          the weights as a plain state_dict, the only format of `monai.bundle.load`

model.pt is a torch file with a pickle that contains only tensors: it loads with weights_only=True. Our own code does
not read it. MONAI executes a bundle's configuration as code: check the signature of the release before you open it with
MONAI.

https://docs.monai.io/en/stable/mb_specification.html
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from models.calibration import Platt
from models.description import Description
from models.familiarity import Familiarity
from models.network_settings import CHANNELS, LABELS, TABULAR
from models.refusal import Refusal
from models.release import WEIGHTS, Release
from pipeline.imaging.missing_slices import require_whole
from pipeline.preprocessing.plausibility import look_at, require_chest
from pipeline.preprocessing.preprocess import orient, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring.reasons import LABELS_NOT_JUDGED
from pipeline.scoring.score import NOTICE, calibrated, network_input, numbered_calibration, require_familiar
from pipeline.scoring.single_scan import read_one

METADATA, INFERENCE, MODEL = "configs/metadata.json", "configs/inference.json", "models/model.pt"
SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"


class ReadScan:
    """A transform from the path of one chest CT to the network's input.

    Returns {"image": (2, slices, rows, columns), "tabular": (4)}, float32. A scan that `fedthorax score` refuses is
    refused here too. `familiarity`: the release's limit; bundles of earlier versions do not name it.

    Raises Refusal: those of `pipeline.scoring.score.score` about the scan.
    """

    def __init__(self, settings: Mapping[str, Any], familiarity: Mapping[str, Any] | None = None) -> None:
        self.settings = Preprocessing.model_validate(settings)
        self.familiarity = None if familiarity is None else Familiarity.model_validate(familiarity)

    def __call__(self, source: str | Path) -> dict[str, torch.Tensor]:
        scan = read_one(Path(source))
        require_whole(scan.stated, scan.volume.spacing_mm[0])
        volume = orient(scan.volume)
        prepared = prepare(volume, self.settings)
        require_chest(look_at(volume, prepared))
        image, known = network_input(prepared, scan.series)
        require_familiar(self.familiarity, image)
        return {"image": image, "tabular": known}


class Calibrate:
    """A transform from logits (2) to {label: calibrated probability}.

    Bundles of earlier versions have the identity for a label that was not calibrated; it gets no number. Raises Refusal
    E_NO_PROBABILITY, and E_LABELS_NOT_JUDGED if no label gets a number.
    """

    def __init__(self, calibration: Mapping[str, Mapping[str, float]]) -> None:
        known = {label: Platt.model_validate(platt) for label, platt in calibration.items()}
        self.calibration = {label: platt for label, platt in known.items() if platt != Platt()}

    def __call__(self, logits: torch.Tensor) -> dict[str, float]:
        if not self.calibration:
            raise Refusal(LABELS_NOT_JUDGED)
        return calibrated(self.calibration, logits.detach().cpu().numpy().astype(np.float32))


def with_weights(network: torch.nn.Module, weights: str, device: str) -> torch.nn.Module:
    """Load the weights of a safetensors file into the network, and set it to inference."""
    network.load_state_dict(load_file(weights))
    return network.to(device).eval()


def write_bundle(folder: Path, release: Release) -> None:
    """Write the three files of the bundle into a release's folder."""
    contents = {METADATA: _metadata(release), INFERENCE: _inference(release.description)}
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / MODEL).parent.mkdir(exist_ok=True)
    torch.save({name: t.contiguous().clone() for name, t in release.network.state_dict().items()}, folder / MODEL)


def _inference(d: Description) -> dict[str, Any]:
    """Return the configuration of an inference with MONAI.

    `python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir SCAN` runs it.
    """
    return {
        "imports": ["$import json", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "scan",
        "device": "cpu",
        "network_def": {
            "_target_": "models.network.SeverityNetwork",
            "settings": {"_target_": "models.network.NetworkSettings", **d.network.model_dump(mode="json")},
        },
        "network": {
            "_target_": "pipeline.bundle.with_weights",
            "network": "@network_def",
            "weights": f"$@bundle_root + '/{WEIGHTS}'",
            "device": "@device",
        },
        "preprocessing": {
            "_target_": "pipeline.bundle.ReadScan",
            "settings": d.preprocessing,
            "familiarity": d.familiarity.model_dump(mode="json") if d.familiarity else None,
        },
        "dataset": {"_target_": "Dataset", "data": ["@dataset_dir"], "transform": "@preprocessing"},
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": {
            "_target_": "pipeline.bundle.Calibrate",
            "calibration": {label: platt.model_dump() for label, platt in numbered_calibration(d).items()},
        },
        "scan": "$@dataset[0]",
        "pred": "$@inferer(@scan['image'][None].to(@device), @network, @scan['tabular'][None].to(@device))[0]",
        "probabilities": "$@postprocessing(@pred)",
        "run": ["$print(json.dumps(@probabilities))"],
    }


def _metadata(release: Release) -> dict[str, Any]:
    d = release.description
    number = f"1.0.0+{release.sha256[:12]}"
    hospitals = "SYNTHETIC hospitals" if d.trained_on_synthetic_data else "the hospitals"
    return {
        "schema": SCHEMA,
        "version": number,
        "changelog": {number: f"run {d.run} of the study {d.study}, {d.rounds} rounds at {d.sites} hospitals"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("fedthorax", "safetensors", "pydicom")},
        "name": d.study,
        "task": "Severe Covid-19 and positive PCR from one chest CT, age and sex",
        "description": f"Trained by {hospitals} of the study {d.study} together; see card.md. {NOTICE}",
        "authors": f"{hospitals} of the study {d.study}",
        "copyright": f"{hospitals} of the study {d.study}; their agreement defines who may use it",
        "data_source": "patients of the hospitals; the data stays there",
        "data_type": "dicom",
        "image_classes": "lung window scaled to -1..1, lung mask",
        "pred_classes": ", ".join(LABELS),
        "eval_metrics": d.metrics,
        "intended_use": f"{d.intended_use} {NOTICE}",
        "network_data_format": _data_format(d),
    }


def _data_format(d: Description) -> dict[str, Any]:
    labels = {str(index): label for index, label in enumerate(LABELS)}
    answer = {"format": "classes", "num_channels": len(LABELS), "spatial_shape": [], "dtype": "float32"}
    return {
        "inputs": {
            "image": {
                "type": "image",
                "format": "hounsfield",
                "modality": "CT",
                "num_channels": CHANNELS,
                "spatial_shape": list(Preprocessing.model_validate(d.preprocessing).shape),
                "dtype": "float32",
                "value_range": [-1, 1],
                "is_patch_data": False,
                "channel_def": {"0": "lung window", "1": "lung mask"},
            },
            "tabular": {
                "type": "tuples",
                "format": "sequence",
                "num_channels": TABULAR,
                "spatial_shape": [],
                "dtype": "float32",
                "value_range": [],
                "is_patch_data": False,
                "channel_def": {
                    "0": "(age in years - 60) / 20",
                    "1": "age known",
                    "2": "female -1, male 1",
                    "3": "sex known",
                },
            },
        },
        "outputs": {"pred": {"type": "logits", **answer, "value_range": [], "channel_def": labels}},
        "post_processed_outputs": {
            "pred": {"type": "probabilities", **answer, "value_range": [0, 1], "channel_def": labels}
        },
    }
