"""Before and after one patient joined: means over N patients and over N + 1 patients, from two runs.

The first question is about the seed's model. The second is about nearly the same model in another run, because the same
model would get the first answer again. The appearance features of a scan (51 numbers) do not depend on a model.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from federation.protocol.metric_allowlist import APPEARANCE_SIZE
from pipeline.cohort.dataset import Example, Examples
from pipeline.evaluation.shortcuts import appearance
from tests.attacks.cohort import Hospital, Patient, draw_patients, with_patient
from tests.attacks.result import Result
from tests.attacks.rig import Answer, Refused, Rig, alone_study, rig, seed_network
from tests.attacks.score import HOSPITALS, from_matrix

HOLDS = "two questions about nearly the same model"
NAME = "one patient more: means of appearance features before and after"
_CLOSE = 0.25  # share of a number's spread over the patients
_PATIENTS = 40
Vector = NDArray[np.float64]


def looks_of(hospital: Hospital, patients: Sequence[Patient]) -> Vector:
    """Return the truth, shape (patients, appearance features)."""
    tensors, everybody = hospital.site.cohort_folder / "tensors", list(hospital.patients)
    names = [f"{everybody.index(patient):05d}.npy" for patient in patients]
    found: Vector = appearance(Examples([Example(tensors / name, None, None, None, None) for name in names]))
    return found


def claimed_looks(attacked: Rig, new: Patient) -> Vector:
    """Return what the difference of two answers reveals about the new patient. Raises Refused."""
    study = alone_study()
    attacked.talk_into(study)
    model = seed_network(study)
    attacked.must("train", study, model, run="joined-1")
    before = attacked.must("evaluate.embed", study, model, run="joined-1")
    attacked.hospital = with_patient(attacked.hospital, new)
    with torch.no_grad():
        model.head.bias += 1e-6
    attacked.must("train", study, model, run="joined-2", round_number=2)
    after = attacked.must("evaluate.embed", study, model, run="joined-2")
    return _total(after) - _total(before)


def _total(answer: Answer) -> Vector:
    total: Vector = answer.arrays["looks"]["mean"].astype(np.float64) * answer.metrics["num-examples"]
    return total


def before_and_after(seeds: Sequence[int]) -> Result:
    """Count the appearance features known to a quarter of their spread. Compare with other hospitals' new patients."""
    claims, truths, spreads = [], [], []
    for seed in seeds:
        with rig(seed=seed, patients={"train": _PATIENTS, "validation": 24, "test": 40}) as attacked:
            new = draw_patients(1000 + seed, {"train": 1})[0]
            try:
                claims.append(claimed_looks(attacked, new))
            except Refused as refused:
                return Result(NAME, HOLDS, "appearance features of its scan", 0, 0, APPEARANCE_SIZE, refused.code)
            truths.append(looks_of(attacked.hospital, [new])[0])
            spreads.append(looks_of(attacked.hospital, attacked.hospital.of("train")).std(axis=0))
    spread = np.mean(spreads, axis=0)
    close = [[int((np.abs(claim - truth) <= _CLOSE * spread).sum()) for truth in truths] for claim in claims]
    scored = from_matrix(np.array(close), claimed=len(seeds) * APPEARANCE_SIZE, of=len(seeds) * APPEARANCE_SIZE)
    return Result.scored(NAME, HOLDS, "appearance features of its scan", scored, note="4 messages to each hospital")


def attacks() -> Iterator[Result]:
    """Run at hospitals that were not used to build the decoder."""
    yield before_and_after(range(201, 201 + HOSPITALS))
