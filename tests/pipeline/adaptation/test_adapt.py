"""A release is adapted to one hospital: what comes out, when it is refused, and what the clinic accepts of it."""

import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.adaptation import LEAST_SCANS
from models.compute import PROCESSOR
from models.refusal import Refusal
from models.release import Release, load_release, save_release
from models.signature import sign, verify
from pipeline.adaptation.adapt import Adapted, adapt
from pipeline.clinic import model_registry
from pipeline.clinic.settings import Clinic
from pipeline.cohort.store import Cohort
from pipeline.site.folder import Site
from pipeline.site.withdrawn import Withdrawn
from tests.attacks.cohort import Hospital, make_hospital
from tests.helpers.adapting import SMALL, add_unlabelled, make_keys, make_parent, tensors

FEW = {"train": 2, "validation": 40, "test": 2}


@dataclass(frozen=True)
class Bench:
    """A hospital, a signed parent with its keys, and what came of the adaptation."""

    folder: Path
    hospital: Hospital
    parent: Release
    keys: tuple[Path, Path]
    adapted: Adapted


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("adapting")
    hospital = make_hospital(folder / "site", patients=dict(FEW))
    add_unlabelled(hospital, tensors(LEAST_SCANS))
    keys = make_keys(folder, "study")
    parent = make_parent(folder / "parent", keys)
    adapted = adapt(hospital.site, folder / "parent", [keys[1]], folder / "adapted", compute=PROCESSOR)
    return Bench(folder, hospital, parent, keys, adapted)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def code(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **options)
    return caught.value.code


@pytest.mark.slow
def test_derived_release_names_its_parent_and_withholds_operating_points(bench: Bench) -> None:
    adapted, parent = bench.adapted, bench.parent
    description = adapted.release.description
    assert description.adaptation is not None
    assert (description.adaptation.parent, description.adaptation.site) == (parent.sha256, "north")
    assert description.adaptation.scans + description.adaptation.unfamiliar == LEAST_SCANS
    assert parent.description.operating_points
    assert description.operating_points == {}
    assert description.study == "trial, adapted at north"
    assert verify(adapted.folder, [adapted.public_key]) == adapted.key_sha256
    card = (adapted.folder / "card.md").read_text()
    assert "thresholds and operating points not backed by evidence after adaptation" in card
    assert parent.sha256 in card
    assert not (adapted.folder / "configs").exists()
    assert "pcr_positive" in description.adaptation.judged


@pytest.mark.slow
def test_adaptation_changes_neither_the_parent_nor_the_cohort(bench: Bench) -> None:
    again = load_release(bench.folder / "parent", [bench.keys[1]])
    assert again.sha256 == bench.parent.sha256
    with Cohort(bench.hospital.site) as cohort:
        assert len(cohort.unlabelled()) == LEAST_SCANS
    assert (bench.hospital.site.folder / "keys" / "adaptation.key").stat().st_mode & 0o077 == 0


KILLED = """
import os, signal, sys
from importlib import import_module
from pathlib import Path
from models.compute import PROCESSOR
from pipeline.site.folder import Site

adapting = import_module("pipeline.adaptation.adapt")
adapting.sign = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
site, parent, key, out = map(Path, sys.argv[1:])
adapting.adapt(Site.open(site), parent, [key], out, compute=PROCESSOR)
"""


@pytest.mark.slow
def test_next_adaptation_removes_what_a_killed_one_left(bench: Bench, tmp_path: Path) -> None:
    site, parent, out = bench.hospital.site, bench.folder / "parent", tmp_path / "out"
    arguments = [site.folder, parent, bench.keys[1], out]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert list(left.rglob("model.safetensors"))
    adapt(site, parent, [bench.keys[1]], out, compute=PROCESSOR)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.pub"}


def leave(site: Site, *, files: bool) -> None:
    """Remove a patient without a label from the cohort, with the prepared scan if `files`."""
    with Cohort(site) as cohort:
        gone, *others = cohort.unlabelled()
        cohort.replace(cohort.patients(), [], cohort.fingerprints(without={gone.tensor} if files else ()), others)
        cohort.sweep()


def begin_to_withdraw(site: Site) -> None:
    with Cohort(site) as cohort:
        Withdrawn(site).add([cohort.unlabelled()[0].pseudonym])


def prepare_again(site: Site) -> None:
    """Let a labelled patient by whom the result is judged have another scan."""
    with Cohort(site) as cohort:
        judging = [row for row in cohort.patients() if row.split == "validation"]
        rest = [row for row in cohort.patients() if row != judging[0]]
        changed = replace(judging[0], tensor=judging[1].tensor)
        cohort.replace([*rest, changed], [], cohort.fingerprints(without=()), cohort.unlabelled())


@pytest.mark.slow
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    "change", [partial(leave, files=True), partial(leave, files=False), begin_to_withdraw, prepare_again]
)
def test_patient_who_leaves_during_the_passes_does_not_remain_in_the_release(
    bench: Bench, tmp_path: Path, change: Callable[[Site], None], at_end: bool
) -> None:
    shutil.copytree(bench.hospital.site.folder, tmp_path / "site")
    site, seen = Site.open(tmp_path / "site"), 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if done == total if at_end else seen == 1:
            change(site)

    options = {"compute": PROCESSOR, "progress": progress}
    assert code(adapt, site, bench.folder / "parent", [bench.keys[1]], tmp_path / "out", **options) == "E_ADAPT_CHANGED"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]


@pytest.mark.slow
def test_adaptation_is_refused_with_a_code(bench: Bench, tmp_path: Path) -> None:
    site, public = bench.hospital.site, bench.keys[1]

    def refused(folder: Path, out: Path = tmp_path / "out", trusted: list[Path] | None = None, at: Any = site) -> str:
        found = code(adapt, at, folder, [public] if trusted is None else trusted, out, compute=PROCESSOR)
        assert out == bench.adapted.folder or not out.exists()
        return found

    assert refused(bench.folder / "parent", bench.adapted.folder) == "E_ADAPT_EXISTS"
    assert refused(bench.folder / "parent", trusted=[]) == "E_ADAPT_UNSIGNED"
    assert refused(bench.adapted.folder) == "E_SIGNATURE"  # the study's key did not sign it
    assert refused(bench.adapted.folder, trusted=[bench.adapted.public_key]) == "E_ADAPT_PARENT"
    make_parent(tmp_path / "limitless", bench.keys, familiarity=None)
    assert refused(tmp_path / "limitless") == "E_ADAPT_PARENT"
    make_parent(tmp_path / "group", bench.keys, network=SMALL.model_copy(update={"norm": "group"}))
    assert refused(tmp_path / "group") == "E_ADAPT_NETWORK"
    other = {**bench.parent.description.preprocessing, "shape": (16, 16, 24)}
    make_parent(tmp_path / "unlike", bench.keys, preprocessing=other)
    assert refused(tmp_path / "unlike") == "E_PREPROCESSING"
    few = make_hospital(tmp_path / "few", patients=dict(FEW))
    add_unlabelled(few, tensors(LEAST_SCANS - 1))
    assert refused(bench.folder / "parent", at=few.site) == "E_ADAPT_TOO_FEW"
    noise = [np.random.default_rng(n).uniform(-1, 1, (2, 16, 16, 16)).astype(np.float16) for n in range(LEAST_SCANS)]
    add_unlabelled(few, noise)
    assert refused(bench.folder / "parent", at=few.site) == "E_ADAPT_UNFAMILIAR"


# --- the clinic -------------------------------------------------------------------------------------------


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    (tmp_path / "clinic").mkdir()
    return Clinic.open(tmp_path / "clinic")


def resigned(bench: Bench, folder: Path, **changes: Any) -> Path:
    """Write the derived release with a changed weight or description, signed with the hospital's own key."""
    release = load_release(bench.adapted.folder)
    if not changes:
        with torch.no_grad():
            release.network.head.bias += 0.5
    save_release(folder, release.network, release.description.model_copy(update=changes))
    sign(folder, bench.hospital.site.folder / "keys" / "adaptation.key")
    return folder


@pytest.mark.slow
def test_clinic_takes_a_derived_release_only_with_its_signed_parent(
    bench: Bench, clinic: Clinic, tmp_path: Path
) -> None:
    derived, own, study = bench.adapted.folder, [bench.adapted.public_key], [bench.keys[1]]
    assert code(model_registry.add, clinic, derived, own, by="test") == "E_DERIVED_PARENT"
    unsigned = tmp_path / "unsigned"
    shutil.copytree(bench.folder / "parent", unsigned)
    model_registry.add(clinic, unsigned, by="test")  # without a key: its signature was not checked
    assert code(model_registry.add, clinic, derived, own, by="test") == "E_DERIVED_PARENT"
    parent = model_registry.add(clinic, bench.folder / "parent", study, by="test")
    assert code(model_registry.add, clinic, derived, by="test") == "E_DERIVED_UNSIGNED"
    assert code(model_registry.add, clinic, derived, study, by="test") == "E_SIGNATURE"
    assert code(model_registry.add, clinic, resigned(bench, tmp_path / "other"), own, by="test") == "E_DERIVED_ALTERED"
    points = resigned(bench, tmp_path / "points", operating_points=bench.parent.description.operating_points)
    assert code(model_registry.add, clinic, points, own, by="test") == "E_DERIVED_ALTERED"
    model = model_registry.add(clinic, derived, own, by="test")
    assert model.name == "trial, adapted at north"
    with clinic.store() as store:
        listed = {each["sha256"]: each for each in model_registry.overview(clinic, store)}
        assert listed[model.sha256]["derived_from"] == parent.sha256
        assert listed[parent.sha256]["derived_from"] is None


@pytest.mark.slow
def test_clinic_goes_back_to_the_parent(bench: Bench, clinic: Clinic) -> None:
    from tests.pipeline.clinic.test_model_registry import answer, scan

    parent = model_registry.add(clinic, bench.folder / "parent", [bench.keys[1]], by="test")
    derived = model_registry.add(clinic, bench.adapted.folder, [bench.adapted.public_key], by="test")
    with clinic.store() as store:
        model_registry.take_up(store, parent, by="test")
        model_registry.take_up(store, derived, by="test")
        job = scan(store)
        answer(store, job, parent.sha256, "live", 0.5)
        answer(store, job, derived.sha256, "shadow", 0.5)
        model_registry.promote(store, derived.sha256, by="test")
        model_registry.promote(store, parent.sha256, by="test")  # it answered before; no --force is needed
        live = store.models.with_role("live")
    assert live is not None
    assert live.sha256 == parent.sha256
