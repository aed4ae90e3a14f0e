"""Tests of the model registry: models are verified, copied completely, run in shadow, compared and promoted."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from models.network import build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from models.release import WEIGHTS, save_release
from models.signature import fingerprint, new_private_key, public_key, sign
from pipeline.clinic import model_registry
from pipeline.clinic.records import Answer
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store, new_id
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.descriptions import description

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625)


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    (tmp_path / "clinic").mkdir()
    return Clinic.open(tmp_path / "clinic")


@pytest.fixture
def release(tmp_path: Path) -> Callable[[str], Path]:
    """Make releases with random weights, each for its own study."""

    def make(study: str) -> Path:
        save_release(tmp_path / study, build_network(SMALL, seed=1), description(study=study, network=SMALL))
        return tmp_path / study

    return make


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public key."""
    private, public = tmp_path / "release.key", tmp_path / "release.pub"
    private.write_bytes(new_private_key())
    public.write_bytes(public_key(private))
    return private, public


def code(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments, **options)
    return caught.value.code


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def answer(
    store: Store, job_id: str, sha256: str, role: str, severe: float, level: str | None = None, **changes: Any
) -> None:
    """Store the answer that a worker would write, without a scan. `changes`: of the score."""
    score = {
        "withheld": None,
        "probability": {"severe": severe},
        "level": {"severe": level},
        "interval": None,
        "input": {"hu_sha256": "f" * 64},
    }
    score |= changes
    made = Answer(
        **{"id": new_id(), "job_id": job_id, "created_at": datetime.now(UTC), "study_uid": "1", "series_uid": "1.1"},
        **{"accession": "", "acquired_at": None, "score": score, "model_sha256": sha256, "model_name": "study"},
        **{"role": role, "folder": store.folder / "answers"},
    )
    store.answers.add(store.jobs.get(job_id), made)


def scan(store: Store) -> str:
    store.jobs.add(new_id(), source="upload", asked_by="test")
    job = store.jobs.take()
    assert job
    return job.id


def test_release_is_stored_under_its_hash(clinic: Clinic, release: Callable[[str], Path]) -> None:
    folder = release("first")
    kept = model_registry.add(clinic, folder, by="test")
    assert (kept.name, kept.role, kept.signed_by, kept.added_by) == ("first", None, None, "test")
    assert contents(clinic.models / kept.sha256) == contents(folder)
    assert [path.name for path in clinic.models.iterdir()] == [kept.sha256]
    assert model_registry.add(clinic, folder, by="somebody else") == kept
    with clinic.store() as store:
        assert [record.action for record in store.audit.records()] == ["add_model"]


def test_signed_release_is_stored_with_its_signer(
    clinic: Clinic, release: Callable[[str], Path], keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    folder = release("signed")
    assert code(model_registry.add, clinic, folder, [public], by="test") == "E_NOT_SIGNED"
    assert model_registry.add(clinic, folder, by="test").signed_by is None
    sign(folder, private)
    kept = model_registry.add(clinic, folder, [public], by="test")
    assert kept.signed_by == fingerprint(public)
    assert model_registry.add(clinic, folder, by="test") == kept
    with clinic.store() as store:
        assert [record.action for record in store.audit.records()] == ["add_model", "add_model"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "release.key").write_bytes(new_private_key())
    (other / "release.pub").write_bytes(public_key(other / "release.key"))
    assert code(model_registry.add, clinic, folder, [other / "release.pub"], by="test") == "E_SIGNATURE"


def test_incomplete_or_damaged_release_is_refused(
    clinic: Clinic, release: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = release("damaged")
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    assert code(model_registry.add, clinic, folder, by="test") == "E_MODEL_ALTERED"
    assert code(model_registry.add, clinic, tmp_path / "nowhere", by="test") == "E_NO_MODEL"
    assert list(clinic.models.iterdir()) == []
    with clinic.store() as store:
        assert store.models.all() == []


def test_release_that_needs_lung_masks_is_refused(clinic: Clinic, tmp_path: Path) -> None:
    described = description(network=SMALL, preprocessing=Preprocessing(method=3).model_dump(mode="json"))
    save_release(tmp_path / "masks", build_network(SMALL, seed=1), described)
    assert code(model_registry.add, clinic, tmp_path / "masks", by="test") == "E_NEEDS_MASKS"
    with clinic.store() as store:
        assert store.models.all() == []
    assert list(clinic.models.iterdir()) == []


def test_adding_a_release_again_repairs_a_damaged_copy(clinic: Clinic, release: Callable[[str], Path]) -> None:
    folder = release("first")
    place = clinic.models / model_registry.add(clinic, folder, by="test").sha256
    (place / WEIGHTS).write_bytes(b"")
    model_registry.add(clinic, folder, by="test")
    assert contents(place) == contents(folder)
    assert list(clinic.models.iterdir()) == [place]


def test_stored_release_is_not_verified_again_in_a_child_process(
    clinic: Clinic, release: Callable[[str], Path], keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Started(Exception):
        pass

    def start(*_: Any, **__: Any) -> None:
        raise Started

    monkeypatch.setattr("pipeline.system.worker_pool.WorkerPool", start)
    folder, (_, public) = release("first"), keys
    with pytest.raises(Started):
        model_registry.add_in_a_child(clinic, folder, by="test")
    kept = model_registry.add(clinic, folder, by="test")
    assert model_registry.add_in_a_child(clinic, folder, by="test") == kept
    with pytest.raises(Started):  # it is stored, but its signature has not been checked
        model_registry.add_in_a_child(clinic, folder, [public], by="test")
    (folder / "card.md").write_text("altered")
    with pytest.raises(Started):
        model_registry.add_in_a_child(clinic, folder, by="test")


def test_first_model_becomes_live_and_the_next_becomes_shadow(clinic: Clinic, release: Callable[[str], Path]) -> None:
    first, second = (model_registry.add(clinic, release(name), by="test") for name in ("first", "second"))
    with clinic.store() as store:
        assert model_registry.take_up(store, first, by="test").role == "live"
        assert model_registry.take_up(store, model_registry.named(store, first.sha256), by="test").role == "live"
        assert model_registry.take_up(store, second, by="test").role == "shadow"
        records = len(store.audit.records())
        assert model_registry.take_up(store, model_registry.named(store, second.sha256), by="test").role == "shadow"
        assert len(store.audit.records()) == records


def test_promotion_needs_shadow_answers_or_force(clinic: Clinic, release: Callable[[str], Path]) -> None:
    first, second = (model_registry.add(clinic, release(name), by="test") for name in ("first", "second"))
    with clinic.store() as store:
        model_registry.take_up(store, first, by="test")
        model_registry.set_shadow(store, second.sha256, by="test")
        assert code(model_registry.promote, store, second.sha256, by="test") == "E_NOT_SHADOWED"
        assert code(model_registry.set_shadow, store, first.sha256, by="test") == "E_IS_LIVE"
        assert code(model_registry.promote, store, first.sha256, by="test") == "E_IS_LIVE"
        assert code(model_registry.promote, store, "0" * 64, by="test") == "E_NO_SUCH_MODEL"
        job = scan(store)
        answer(store, job, first.sha256, "live", 0.5)
        answer(store, job, second.sha256, "shadow", 0.5)
        model_registry.promote(store, second.sha256, by="me")
        assert store.models.with_role("live") == replace(second, role="live")
        assert store.models.with_role("shadow") is None
        done = store.audit.records()[-1]
        assert (done.who, done.action, done.model_sha256) == ("me", "promote", second.sha256)
        assert {each.model_sha256 for each in store.answers.newest(role=None)} == {first.sha256, second.sha256}
        model_registry.promote(store, first.sha256, by="me", force=True)
        assert store.models.with_role("live") == replace(first, role="live")


def test_model_is_found_by_a_prefix_of_its_hash(clinic: Clinic, release: Callable[[str], Path]) -> None:
    kept = [model_registry.add(clinic, release(name), by="test") for name in ("first", "second")]
    with clinic.store() as store:
        for model in kept:
            assert model_registry.named(store, model.sha256[:12].upper()) == model
        for name in ("", "x", "0" * 64):
            assert code(model_registry.named, store, name) == "E_NO_SUCH_MODEL"


def test_number_that_a_page_would_not_show_is_not_compared_either(
    clinic: Clinic, release: Callable[[str], Path]
) -> None:
    """An earlier version stored the number of a label that the release itself calls not calibrated or not judged."""
    first, second = (model_registry.add(clinic, release(name), by="test") for name in ("first", "second"))
    says = "severe was not calibrated on validation patients, or not judged on test patients"
    with clinic.store() as store:
        model_registry.take_up(store, first, by="test")
        job = scan(store)
        answer(store, job, first.sha256, "live", 0.2, "low")
        answer(store, job, second.sha256, "shadow", 0.9, "high", model={"doubts": [says]})
        beside = model_registry.compare(store, second.sha256)
        assert beside and beside.agreement == {} and beside.mean_difference == {}
        assert model_registry.disagreements(store, second.sha256) == []


def test_shadow_and_live_answers_are_compared_per_scan(clinic: Clinic, release: Callable[[str], Path]) -> None:
    first, second = (model_registry.add(clinic, release(name), by="test") for name in ("first", "second"))
    with clinic.store() as store:
        model_registry.take_up(store, first, by="test")
        assert model_registry.compare(store, second.sha256) is None
        figures = [
            (0.2, "low", 0.3, "low"),
            (0.4, None, 0.6, None),
            (0.8, "high", 0.7, "high"),
            (0.1, "low", 0.9, "high"),
        ]
        for live, live_level, shadow, shadow_level in figures:
            job = scan(store)
            answer(store, job, first.sha256, "live", live, live_level)
            answer(store, job, second.sha256, "shadow", shadow, shadow_level)
        answer(store, scan(store), first.sha256, "live", 0.9)  # without a shadow answer
        beside = model_registry.compare(store, second.sha256)
        assert beside
        assert beside.scans == 4
        assert beside.agreement == {"severe": 0.5}
        assert beside.mean_difference["severe"] == pytest.approx((0.1 + 0.2 - 0.1 + 0.8) / 4)
        told = {each["sha256"]: each for each in model_registry.overview(clinic, store)}
        assert (told[first.sha256]["answers"], told[first.sha256]["beside_live"]) == (5, None)
        assert (told[second.sha256]["answers"], told[second.sha256]["beside_live"]) == (4, vars(beside))
        assert (told[first.sha256]["rounds"], told[first.sha256]["sites"], told[first.sha256]["study"]) == (
            7,
            3,
            "first",
        )
        shutil.rmtree(clinic.models / first.sha256)
        assert code(model_registry.overview, clinic, store) == "E_MODEL_ALTERED"
