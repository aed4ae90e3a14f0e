"""Evaluate saliency maps on phantoms with known lesions. Not part of `make bench`.

    python benchmarks/pointing.py [--work build/pointing]

Two synthetic hospitals train a 3D and a 2.5D network. The maps are evaluated on PCR-positive patients with lesions of a
third hospital, whose scanner neither network has seen:

- the pointing game (Zhang et al., IJCV 2018): how often the map's maximum is on a lesion, or at most one voxel away;
- energy: the share of the map on lesions (Wang et al., Score-CAM, CVPRW 2020);
- deletion: the decrease of the logit if the tenth of the lungs that the map ranks highest is replaced by aerated lung;
- sanity (Adebayo et al., NeurIPS 2018): does the map change if weights are randomised again, from the head down?

Scans, trained weights and results are stored in the folder of --work, so that an interrupted run can continue. Writes
benchmarks/results/pointing.json and pointing.md.
"""

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import processor_seconds
from numpy.typing import NDArray
from pointing_methods import METHODS, OURS, SLICEWISE, Method
from run import circumstances, markdown
from safetensors.torch import load_file, save_file
from scipy import ndimage
from scipy.stats import binomtest, bootstrap, spearmanr

from models.network import SeverityNetwork, build_network
from models.network_settings import LABELS, NetworkSettings
from models.saliency import baseline, saliency
from pipeline.cohort.dataset import Example, Examples
from pipeline.evaluation.discrimination import auroc
from pipeline.imaging.volume import Volume, whole_hu
from pipeline.phantom.cohorts import volume_of
from pipeline.phantom.generate import make_body
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.patients import draw_patient
from pipeline.phantom.scans import acquire
from pipeline.preprocessing.preprocess import Prepared, orient, prepare, resample
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.training.train import predict, train
from pipeline.training.train_settings import Schedule, TrainSettings

RESULTS = Path(__file__).with_name("results")
TRAINING, JUDGED = ((0, 170, 1), (1, 170, 1)), (3, 200, 3)  # hospital, patients, seed
ARCHITECTURES = {"resnet18": METHODS, "resnet18_slices": SLICEWISE}
EPOCHS = 8
LESION_HU = 100  # a voxel with more planted density (HU) counts as lesion; ground glass adds 330
CASES = 80  # evaluated patients, PCR-positive and with lesions, for whom maps are computed
SANITY_PATIENTS = 20
TIMED = 5  # maps of each method
RANDOM = 123  # seed of untrained weights
FOR_SEVERE = (OURS, "density, no network")  # also evaluated for `severe`


@dataclass(frozen=True)
class Case:
    """One phantom: the network's input, and the planted density in HU on the same grid."""

    example: Example
    pattern: str
    planted: Path

    def load(self) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.bool_], NDArray[np.bool_]]:
        """Return scan, tabular data, lungs, and the lesions in the lungs."""
        scans, tabular, _ = Examples([self.example]).batch(np.array([0]), None)
        lungs = scans[0, 1].numpy() > 0.5
        return scans[0], tabular[0], lungs, (np.load(self.planted) > LESION_HU) & lungs


# --- phantoms and networks --------------------------------------------------------------------------------


def make(folder: Path, number: int, hospital: int, seed: int) -> dict[str, Any]:
    """Write one patient's tensor and planted density; return the patient's data."""
    at = HOSPITALS[hospital]
    rng = np.random.default_rng([seed, hospital, number])
    patient = draw_patient(f"SYNTHETIC-{number}", "SYNTHETIC", at.mix, rng)
    healthy, _ = make_body(replace(patient, pattern="none"), at, copy.deepcopy(rng))  # the same body without lesions
    ill, chance = make_body(patient, at, rng)
    severe = bool(rng.random() < chance)
    volume = volume_of(acquire(ill.hu, at.scanner, rng), at.scanner.grid)
    prepared = prepare(volume, Preprocessing())
    np.save(folder / f"{number}.npy", prepared.tensor)
    np.save(folder / f"{number}-planted.npy", as_tensor(Volume(whole_hu(ill.hu - healthy.hu), volume.affine), prepared))
    known = {"age_years": float(patient.age_years), "sex": patient.sex, "pcr_positive": patient.pcr_positive}
    return {**known, "severe": severe, "pattern": patient.pattern}


def as_tensor(volume: Volume, prepared: Prepared) -> NDArray[np.float16]:
    """Resample another field of the same scan to the grid of its tensor."""
    working = resample(torch.from_numpy(orient(volume).hu).float(), prepared.image_hu.shape)
    return resample(working[prepared.box], prepared.tensor.shape[1:]).numpy().astype(np.float16)


def kept(file: Path, work: Callable[[], Any]) -> Any:
    """Return the result of `work`, from its file if it was done before."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(work()))
    return json.loads(file.read_text())


def cohort(work: Path, hospital: int, patients: int, seed: int) -> list[Case]:
    folder = work / f"{HOSPITALS[hospital].name}-{patients}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(1, patients + 1)
    table = kept(folder / "patients.json", lambda: [make(folder, number, hospital, seed) for number in numbers])
    return [
        Case(
            Example(folder / f"{number}.npy", row["age_years"], row["sex"], row["pcr_positive"], row["severe"]),
            row["pattern"],
            folder / f"{number}-planted.npy",
        )
        for number, row in zip(numbers, table, strict=True)
    ]


def trained(work: Path, architecture: str, patients: list[Case]) -> SeverityNetwork:
    network = build_network(NetworkSettings.model_validate({"architecture": architecture}), seed=1)
    weights = work / f"{architecture}.safetensors"
    if not weights.is_file():
        examples = Examples([case.example for case in patients])
        for epoch in range(EPOCHS):
            loss = train(network, examples, TrainSettings(), Schedule(epoch, 1, EPOCHS), seed=1)
            print(f"{architecture}: epoch {epoch + 1} of {EPOCHS}, loss {loss:.3f}", flush=True)
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
    network.load_state_dict(load_file(weights))
    return network.eval()


# --- figures ----------------------------------------------------------------------------------------------


def judge(network: SeverityNetwork, method: Method, label: int, cases: list[Case]) -> dict[str, Any]:
    hits, near, energy, drops = [], [], [], []
    for case in cases:
        scan, tabular, lungs, lesions = case.load()
        found = np.where(lungs, np.maximum(method(network, scan, tabular, label), 0), 0)
        top = np.unravel_index(found.argmax(), found.shape)
        hits.append(bool(lesions[top]))
        near.append(bool(ndimage.binary_dilation(lesions)[top]))
        energy.append(float(found[lesions].sum() / max(found.sum(), 1e-12)))
        highest = torch.from_numpy(lungs & (found >= np.quantile(found[lungs], 0.9)))
        with torch.inference_mode():
            both = torch.stack([scan, torch.where(highest, baseline(scan), scan)])
            logits = network(both, tabular.expand(2, -1))[:, label]
        drops.append(float(logits[0] - logits[1]))
    figures = {"hit": share(hits), "near": share(near), "energy": mean(energy), "deletion": mean(drops)}
    return {**figures, "forwards": forwards(network, method, cases[0])}


def share(hits: list[bool]) -> list[float]:
    """Return a share with its 95 % interval (Wilson)."""
    interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return [float(np.mean(hits)), float(interval.low), float(interval.high)]


def mean(values: list[float]) -> list[float]:
    """Return a mean with its 95 % interval (bootstrap over patients, BCa)."""
    interval = bootstrap((values,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    return [float(np.mean(values)), float(interval.low), float(interval.high)]


def by_chance(cases: list[Case]) -> dict[str, list[float]]:
    """Expected result of a random voxel of the lungs: the lesions' share of the lungs."""
    shares, near = [], []
    for case in cases:
        _, _, lungs, lesions = case.load()
        shares.append(float(lesions[lungs].mean()))
        near.append(float(ndimage.binary_dilation(lesions)[lungs].mean()))
    return {"hit": mean(shares), "near": mean(near), "energy": mean(shares)}


def forwards(network: SeverityNetwork, method: Method, case: Case) -> float:
    """Measure the processor time of a map in forward passes."""
    scan, tabular, *_ = case.load()

    @torch.inference_mode()
    def forward() -> None:
        network(scan[None], tabular[None])

    maps, passes = processor_seconds(TIMED, lambda: method(network, scan, tabular, 0), forward)
    return float(np.median(maps) / np.median(passes))


def sanity(network: SeverityNetwork, architecture: str, cases: list[Case]) -> dict[str, float]:
    """Mean rank correlation in the lungs of our map before and after weights are randomised, from the head down."""
    drawn = build_network(NetworkSettings.model_validate({"architecture": architecture}), seed=RANDOM).state_dict()
    inner = "backbone.encoder." if architecture.endswith("_slices") else "backbone."
    layers = {f"layer {number}": (f"{inner}layer{number}.",) for number in (4, 3, 2, 1)}
    stages = {"head": ("head.", "tabular."), **layers, "all": ("",)}
    loaded = [case.load() for case in cases[:SANITY_PATIENTS]]
    ours = [saliency(network, scan, tabular, 0)[lungs] for scan, tabular, lungs, _ in loaded]
    other, found = copy.deepcopy(network), {}
    for stage, prefixes in stages.items():
        state = other.state_dict()
        other.load_state_dict({name: drawn[name] if name.startswith(prefixes) else state[name] for name in state})
        theirs = [saliency(other, scan, tabular, 0)[lungs] for scan, tabular, lungs, _ in loaded]
        alike = [spearmanr(a, b).statistic if b.any() else 0.0 for a, b in zip(ours, theirs, strict=True)]
        found[stage] = float(np.mean(alike))
    return found


def measure(work: Path) -> dict[str, Any]:
    patients = [case for order in TRAINING for case in cohort(work, *order)]
    unseen = cohort(work, *JUDGED)
    cases = [case for case in unseen if case.pattern == "covid"][:CASES]
    judged = Examples([case.example for case in unseen])
    result: dict[str, Any] = {"cases": len(cases), "unseen": len(unseen), "chance": by_chance(cases), "networks": {}}
    for architecture, methods in ARCHITECTURES.items():
        network = trained(work, architecture, patients)
        logits = predict(network, judged)
        areas = [auroc(logits[:, k], judged.targets[:, k]) for k in range(len(LABELS))]
        found: dict[str, Any] = {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "auroc": {label: f"{area}, {area.patients} patients" for label, area in zip(LABELS, areas, strict=True)},
            "maps": {label: {} for label in LABELS},
        }
        for name, method in methods.items():
            for k, label in enumerate(LABELS):
                if label == "pcr_positive" or name in FOR_SEVERE:
                    file = work / architecture / f"{label}, {name}.json"
                    figures = kept(file, partial(judge, network, method, k, cases))
                    found["maps"][label][name] = figures
                    print(architecture, label, name, figures, flush=True)
        unlearnt = build_network(NetworkSettings.model_validate({"architecture": architecture}), seed=RANDOM).eval()
        file = work / architecture / "random weights.json"
        found["maps"]["pcr_positive"]["ours of a network that has learnt nothing"] = kept(
            file, partial(judge, unlearnt, saliency, 0, cases)
        )
        found["sanity"] = kept(work / architecture / "sanity.json", partial(sanity, network, architecture, cases))
        result["networks"][architecture] = found
    return result


# --- the page ---------------------------------------------------------------------------------------------


def cell(estimate: list[float]) -> str:
    value, low, high = estimate
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def text(result: dict[str, Any]) -> str:
    head = ["map", "on a lesion", "at most a voxel beside", "energy", "deletion takes", "cost in forward passes"]
    chance = ["a voxel at random", *(cell(result["chance"][key]) for key in ("hit", "near", "energy")), "", ""]
    lines = [
        "# Where saliency maps point",
        "",
        f"{result['date']}; {result['machine']}. Only synthetic patients: {result['cases']} PCR-positive patients with "
        "lesions, of a hospital that did not train; 95 % intervals over patients. "
        "`benchmarks/pointing.py` defines the metrics.",
        "",
    ]
    for architecture, found in result["networks"].items():
        for label, maps in found["maps"].items():
            rows = [
                [
                    name,
                    *(cell(row[key]) for key in ("hit", "near", "energy")),
                    cell(row["deletion"]),
                    f"{row['forwards']:.0f}",
                ]
                for name, row in maps.items()
            ]
            lines += [f"## {architecture}, `{label}`: AUROC {found['auroc'][label]}", ""]
            lines += markdown(head, [*rows, chance])
        lines += [f"Rank correlation of our map with the map after weights are randomised ({architecture}):", ""]
        lines += markdown(list(found["sanity"]), [[f"{value:.2f}" for value in found["sanity"].values()]])
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate saliency maps on phantoms with known lesions.")
    parser.add_argument("--work", type=Path, default=Path("build/pointing"))
    work = parser.parse_args().work
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    result = {**circumstances(), **measure(work)}
    (RESULTS / "pointing.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "pointing.md").write_text(text(result))
    print(text(result))


if __name__ == "__main__":
    main()
