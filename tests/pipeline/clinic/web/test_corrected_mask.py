"""Tests of masks corrected by hand: they are checked, measured on the server, and kept with their decision."""

import base64
import gzip
import io
import zlib
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from pipeline.clinic.corrected_mask import MASKS
from pipeline.clinic.pictures import GRID_PIXELS, LABELS
from pipeline.clinic.records import Answer
from pipeline.clinic.retention import forget_old
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import Tokens
from pipeline.preprocessing.lung_labels import LEFT, RIGHT, Counting, count, sides_of
from pipeline.preprocessing.opacity import Opacity
from tests.pipeline.clinic.web.conftest import ADDRESS, refused

Put = Callable[..., Answer]
Array = NDArray[np.uint8]


@pytest.fixture
def reader(clinic: Clinic) -> TestClient:
    """A client with the token of a named person."""
    token = Tokens(clinic.folder).make("reader", "score", by="test", person="Leser^Anna")
    return TestClient(make_app(clinic), base_url=ADDRESS, headers={"Authorization": f"Bearer {token}"})


def labels_at(client: TestClient, path: str) -> Array:
    """Download labels, shape (slices, rows, columns)."""
    response = client.get(f"/api/v1/answers/{path}/files/{LABELS}")
    assert response.status_code == 200, response.text
    image = nib.Nifti1Image.from_bytes(gzip.decompress(response.content))
    return np.asarray(image.dataobj).transpose(2, 1, 0)


def packed(change: Array) -> str:
    return base64.b64encode(zlib.compress(change.astype(np.uint8).tobytes())).decode()


def mask_of(before: Array, labels: Array) -> dict[str, Any]:
    return {"shape": list(before.shape), "changes": packed(before ^ labels)}


def post(client: TestClient, answer: Answer, correction: dict[str, Any], **more: Any) -> Any:
    revision = client.get(f"/api/v1/answers/{answer.id}").json()["revision"]
    entry = {"verdict": "corrected", "revision": revision, "reason": "lungs", "correction": correction, **more}
    return client.post(f"/api/v1/answers/{answer.id}/decisions", json=entry)


def without_the_left_lung(before: Array) -> Array:
    return np.where(sides_of(before) == LEFT, before & ~np.uint8(15), before)


def test_table_is_computed_from_the_corrected_mask_and_the_models_is_unchanged(
    reader: TestClient, answer_to: Put
) -> None:
    answer = answer_to()
    before = labels_at(reader, answer.id)
    after = without_the_left_lung(before)
    content = post(reader, answer, {"mask": mask_of(before, after)}).json()
    model, regions = answer.score["lungs"]["regions"], content["reviewed"]["lungs"]["regions"]
    assert answer.score["lungs"]["ranges"] and not content["reviewed"]["lungs"]["ranges"], "of the model's shares"
    assert content["score"]["lungs"] == answer.score["lungs"]
    assert regions["left"]["whole"] == {"ml": 0.0, "ground_glass": None, "consolidation": None}
    assert regions["both"]["whole"] == regions["right"]["whole"] == model["right"]["whole"]
    mask = content["decision"]["correction"]["mask"]
    assert mask["changed"] == np.count_nonzero(before != after)
    assert content["decision"]["before"]["regions"] == model
    assert np.array_equal(labels_at(reader, f"{answer.id}/decisions/{content['decision']['id']}"), after)
    assert np.array_equal(labels_at(reader, answer.id), before)


def test_reader_decides_which_voxels_count_and_density_as_what(reader: TestClient, answer_to: Put) -> None:
    answer = answer_to()
    before = labels_at(reader, answer.id)
    inner = count(before)[1] & (sides_of(before) == RIGHT)
    excluded = np.where(inner, RIGHT | Counting.NEVER << 2 | before & 48, before).astype(np.uint8)
    regions = post(reader, answer, {"mask": mask_of(before, excluded)}).json()["reviewed"]["lungs"]["regions"]
    assert regions["right"]["whole"]["ground_glass"] == regions["right"]["whole"]["consolidation"] == 0
    dense = before >> 4 == Opacity.CONSOLIDATION  # the chest wall too
    lung = np.where(dense, RIGHT | Counting.ALSO_AT_EDGE << 2 | before & 48, before & 48).astype(np.uint8)
    regions = post(reader, answer, {"mask": mask_of(before, lung)}).json()["reviewed"]["lungs"]["regions"]
    assert regions["right"]["whole"]["consolidation"] == 1.0


def test_mask_is_kept_for_each_decision_and_removed_with_the_answer(
    reader: TestClient, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to()
    before = labels_at(reader, answer.id)
    entry = {"mask": mask_of(before, without_the_left_lung(before))}
    first = post(reader, answer, entry).json()["decision"]["id"]
    again = post(reader, answer, {"lungs_usable": False}).json()
    assert again["decision"]["correction"]["mask"] is None
    assert sides_of(labels_at(reader, f"{answer.id}/decisions/{first}")).any()  # what was said before stays
    other = f"/api/v1/answers/{answer.id}/decisions/{again['decision']['id']}/files/{LABELS}"
    assert refused(reader.get(other)) == "E_NO_SUCH_FILE"
    assert [path.name for path in (answer.folder / MASKS).iterdir()] == [first]
    clinic.settings.keep.answers_days = 1
    with clinic.store() as store:
        store.database.rows("UPDATE answers SET created_at = '2020-01-01' RETURNING id")
        forget_old(clinic, store)
    assert not answer.folder.exists()


def test_record_names_the_mask_and_holds_no_voxel_and_no_table(
    reader: TestClient, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to()
    before = labels_at(reader, answer.id)
    mask = post(reader, answer, {"mask": mask_of(before, without_the_left_lung(before))}).json()["decision"]
    with clinic.store() as store:
        record = store.audit.records()[-1]
    kept = mask["correction"]["mask"]
    assert (record.who, record.action) == ("reader", "decide")
    assert record.output is not None
    assert record.output["mask"] == {"sha256": kept["sha256"], "changed": kept["changed"]}


def test_same_mask_sent_twice_is_one_decision(reader: TestClient, answer_to: Put, clinic: Clinic) -> None:
    answer = answer_to()
    before = labels_at(reader, answer.id)
    correction = {"mask": mask_of(before, without_the_left_lung(before))}
    entry = {"verdict": "corrected", "revision": answer.revision, "reason": "lungs", "correction": correction}
    made = [reader.post(f"/api/v1/answers/{answer.id}/decisions", json=entry) for _ in range(2)]
    assert [each.status_code for each in made] == [201, 201]
    with clinic.store() as store:
        assert len(store.decisions.of(answer.id)) == 1
    assert len(list((answer.folder / MASKS).iterdir())) == 1


def test_slices_show_the_corrected_mask_and_the_grid_under_it(reader: TestClient, answer_to: Put) -> None:
    answer = answer_to()
    base = f"/api/v1/answers/{answer.id}"
    before = labels_at(reader, answer.id)
    middle = before.shape[0] // 2
    scan = Image.open(io.BytesIO(reader.get(f"{base}/mask/{middle}.png").content))
    assert scan.size == (before.shape[2] * GRID_PIXELS, before.shape[1] * GRID_PIXELS)
    voxels = np.asarray(scan, np.float32).reshape(before.shape[1], GRID_PIXELS, before.shape[2], GRID_PIXELS)
    grey, density = voxels.mean(axis=(1, 3)), before[middle] >> 4
    assert grey[density == Opacity.CONSOLIDATION].mean() > grey[sides_of(before[middle]) > 0].mean() + 50
    for wrong in (f"{base}/mask/{before.shape[0]}.png", f"{base}/slices/axial/9.png?overlay=lungs&mask=reader"):
        assert refused(reader.get(wrong)) == "E_NO_SUCH_PICTURE"
    post(reader, answer, {"mask": mask_of(before, without_the_left_lung(before))})
    image = reader.get(f"{base}/slices").json()["axial"]["start"]
    drawn = [reader.get(f"{base}/slices/axial/{image}.png?overlay=lungs&mask={whose}") for whose in ("model", "reader")]
    assert drawn[0].status_code == drawn[1].status_code == 200
    model, by_hand = (np.asarray(Image.open(io.BytesIO(each.content)).convert("RGB"), np.int16) for each in drawn)
    columns = np.flatnonzero((model != by_hand).any(axis=(0, 2)))
    assert columns.size and columns.min() > model.shape[1] / 2  # the patient's left


# --- attacks and accidents ---

WRONG: dict[str, Callable[[Array], dict[str, Any]]] = {
    "another shape": lambda before: {"shape": [1, *before.shape[1:]], "changes": packed(np.zeros_like(before))},
    "axes exchanged": lambda before: {"shape": list(before.shape[::-1]), "changes": packed(np.zeros_like(before))},
    "too short": lambda before: {"shape": list(before.shape), "changes": packed(np.zeros(before.size - 1))},
    "bomb": lambda before: {"shape": list(before.shape), "changes": packed(np.zeros(40_000_000))},
    "two streams": lambda before: {
        "shape": list(before.shape),
        "changes": base64.b64encode(zlib.compress(bytes(before.size)) * 2).decode(),
    },
    "cut off": lambda before: {
        "shape": list(before.shape),
        "changes": base64.b64encode(zlib.compress(before.tobytes())[:-8]).decode(),
    },
    "no Base64": lambda before: {"shape": list(before.shape), "changes": "\u00fc{}"},
    "no zlib": lambda before: {"shape": list(before.shape), "changes": base64.b64encode(b"mask").decode()},
    "empty": lambda before: {"shape": list(before.shape), "changes": ""},
    "third side": lambda before: mask_of(before, before | np.uint8(3)),
    "unknown counting": lambda before: mask_of(before, before | np.uint8(12)),
    "counts outside": lambda before: mask_of(before, np.where(sides_of(before) == 0, before | 4, before)),
    "another density": lambda before: {"shape": list(before.shape), "changes": packed(np.full_like(before, 16))},
    "high bits": lambda before: {"shape": list(before.shape), "changes": packed(np.full_like(before, 128))},
    "no lung": lambda before: mask_of(before, before & 48),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_mask_that_does_not_fit_is_refused_and_nothing_is_kept(
    wrong: Callable[[Array], dict[str, Any]], reader: TestClient, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to()
    response = post(reader, answer, {"mask": wrong(labels_at(reader, answer.id))})
    assert (response.status_code, refused(response)) == (422, "E_CORRECTED_MASK")
    assert not (answer.folder / MASKS).exists()
    with clinic.store() as store:
        assert store.decisions.of(answer.id) == []


@pytest.mark.parametrize(
    ("correction", "verdict"),
    [
        ({"lungs_usable": False}, "corrected"),
        ({"shares": {"left": {"upper": {"ground_glass": 0.1, "consolidation": 0.1}}}}, "corrected"),
        ({}, "accepted"),
        ({}, "rejected"),
    ],
)
def test_mask_that_contradicts_the_decision_is_refused(
    correction: dict[str, Any], verdict: str, reader: TestClient, answer_to: Put
) -> None:
    answer = answer_to()
    before = labels_at(reader, answer.id)
    mask = mask_of(before, without_the_left_lung(before))
    response = post(reader, answer, {**correction, "mask": mask}, verdict=verdict)
    assert refused(response) == "E_DECISION"
    assert refused(post(reader, answer, {"mask": mask_of(before, before)})) == "E_DECISION"  # nothing is corrected
    assert not (answer.folder / MASKS).exists()


@pytest.mark.parametrize(
    ("mask", "code"),
    [
        ({"shape": [0, 1, 1], "changes": ""}, "E_REQUEST"),
        ({"shape": [1, 1], "changes": ""}, "E_REQUEST"),
        ({"shape": [1, 1, 5000], "changes": ""}, "E_REQUEST"),
        ({"shape": [1, 1, 1], "changes": "A" * 60_001}, "E_REQUEST"),
        ({"shape": [1, 1, 1], "changes": "A" * 2**16}, "E_REQUEST_SIZE"),
        ({"shape": [1, 1, 1], "changes": "", "regions": {}}, "E_REQUEST"),
        ({"sha256": "0" * 64, "changed": 1, "regions": {}}, "E_REQUEST"),
    ],
    ids=lambda each: str(each)[:40],
)
def test_figures_cannot_be_sent_in_place_of_a_mask(
    mask: dict[str, Any], code: str, reader: TestClient, answer_to: Put
) -> None:
    assert refused(post(reader, answer_to(), {"mask": mask})) == code


def test_answer_of_an_earlier_version_has_no_mask_to_correct(reader: TestClient, answer_to: Put) -> None:
    answer = answer_to()
    before = labels_at(reader, answer.id)
    (answer.folder / LABELS).unlink()
    response = post(reader, answer, {"mask": mask_of(before, without_the_left_lung(before))})
    assert (response.status_code, refused(response)) == (409, "E_MASK_NOT_KEPT")


def test_mask_that_was_changed_on_the_disk_is_not_used(reader: TestClient, answer_to: Put) -> None:
    answer = answer_to()
    before = labels_at(reader, answer.id)
    made = post(reader, answer, {"mask": mask_of(before, without_the_left_lung(before))}).json()["decision"]["id"]
    (answer.folder / MASKS / made / LABELS).write_bytes((answer.folder / LABELS).read_bytes())
    base = f"/api/v1/answers/{answer.id}"
    assert refused(reader.get(f"{base}/slices/axial/9.png?overlay=lungs&mask=reader")) == "E_CORRECTED_MASK"
    assert refused(reader.get(f"{base}/decisions/{made}/files/sr.dcm")) == "E_RESULT_WRITE"


@pytest.mark.parametrize(("role", "person"), [("read", "Leser^Anna"), ("score", "")])
def test_user_without_the_right_cannot_correct_a_mask(role: Any, person: str, answer_to: Put, clinic: Clinic) -> None:
    answer = answer_to()
    token = Tokens(clinic.folder).make("somebody", role, by="test", person=person)
    client = TestClient(make_app(clinic), base_url=ADDRESS, headers={"Authorization": f"Bearer {token}"})
    before = labels_at(client, answer.id)
    assert post(client, answer, {"mask": mask_of(before, without_the_left_lung(before))}).status_code == 403
    assert not (answer.folder / MASKS).exists()
