"""Patients without labels change no reply: the same site gives the same bytes with and without 100 of them."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.task_identity import TaskIdentity

from federation.client.client_app import app
from federation.gateway.policy import policy_digest
from federation.protocol.flat_weights import pack
from federation.protocol.metric_allowlist import APPEARANCE_SIZE
from federation.protocol.patient_counts import count_patients, training_patients
from federation.protocol.study_config import Study
from pipeline.cohort.store import Cohort, Scan, UnlabelledRow
from pipeline.cohort.tensor_files import save_tensor
from pipeline.preprocessing.preprocess_settings import settings_digest
from tests.attacks.cohort import PREPROCESSING, Hospital, make_hospital
from tests.attacks.rig import alone_study, released_study, seed_network
from tests.federation.gateway.messages import record_of

FEW = {"train": 24, "validation": 24, "test": 24}
KINDS = ("query.handshake", "train", "train.head", "evaluate.calibrate", "evaluate.test", "evaluate.embed")


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospital]:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = make_hospital(tmp_path / "site", patients=dict(FEW), settings={"min_patients = 10": "min_patients = 3"})
    monkeypatch.setenv("FEDTHORAX_SITE_DIR", str(made.site.folder))
    yield made
    torch.set_num_threads(threads)


def add_unlabelled(hospital: Hospital, count: int) -> None:
    """Add patients without labels as ingest does, with scans and pseudonyms between those of the others."""
    rng, digest, added = np.random.default_rng(5), settings_digest(PREPROCESSING), []
    with Cohort(hospital.site) as cohort:
        for number in range(count):
            name = f"{number:05d}u"
            tensor = rng.uniform(-1, 1, (2, *PREPROCESSING.shape)).astype(np.float16)
            save_tensor(cohort.tensors, f"{name}.npy", tensor)
            cohort.add_scan(Scan(name, digest, None, None, "", name, f"{name}.npy", None))
            added.append(UnlabelledRow(name, f"{name}.npy"))
        known = cohort.fingerprints(without=())
        cohort.replace(cohort.patients(), cohort.findings(), known, added)
        cohort.sweep()
        assert cohort.unlabelled() == added


def reply(kind: str, study: Study) -> bytes:
    """Return the bytes of the app's answer to one message."""
    answer = answered(kind, study)
    assert not answer.has_error(), answer.error
    return recorddict_to_proto(answer.content).SerializeToString(deterministic=True)


def answered(kind: str, study: Study) -> Message:
    """Return the app's answer to one message."""
    arrays, buffers = pack(seed_network(study))
    typical = {name: np.ones(APPEARANCE_SIZE, np.float32) for name in ("mean", "variance")}
    config: dict[str, Any] = {"server-round": 1, "audit": True}
    content = RecordDict(
        {
            "arrays": record_of(arrays),
            "buffers": record_of(buffers),
            "typical": record_of(typical),
            "config": ConfigRecord(config),
        }
    )
    context = Context(1, 1, {}, RecordDict(), {"study": study.model_dump_json(), "run": "trial"})
    return app(Message(content, dst_node_id=1, message_type=kind), context)


@pytest.mark.slow
@pytest.mark.parametrize("study", [alone_study(), released_study()], ids=["figures alone", "figures in sums"])
def test_replies_are_equal_to_the_byte_with_and_without_unlabelled_patients(hospital: Hospital, study: Study) -> None:
    site = hospital.site
    before = {kind: reply(kind, study) for kind in KINDS}
    counted, trained, policy = count_patients(site), training_patients(site), policy_digest(site.settings)
    add_unlabelled(hospital, 100)
    allowed = site.folder / "site.toml"
    allowed.write_text(
        allowed.read_text().replace("unlabelled_patients = false", "unlabelled_patients = true"), encoding="utf-8"
    )
    assert {kind: reply(kind, study) for kind in KINDS} == before
    assert (count_patients(site), training_patients(site), policy_digest(site.settings)) == (counted, trained, policy)


def test_no_program_reads_the_unlabelled_as_patients(hospital: Hospital) -> None:
    with Cohort(hospital.site) as cohort:
        before = cohort.patients(), cohort.examples("train", "validation", "test"), cohort.settings()
    add_unlabelled(hospital, 100)
    with Cohort(hospital.site) as cohort:
        assert (cohort.patients(), cohort.examples("train", "validation", "test"), cohort.settings()) == before
    with sqlite3.connect(hospital.site.cohort_folder / "cohort.sqlite") as database:
        assert database.execute("SELECT count(*) FROM patients").fetchone() == (sum(FEW.values()),)


@pytest.mark.parametrize("kind", KINDS)
def test_site_with_chest_ct_only_refuses_before_it_reads_the_cohort(hospital: Hospital, kind: str) -> None:
    """The answer does not depend on the number of its patients: here its cohort cannot even be read."""
    add_unlabelled(hospital, 30)
    text = '[site]\nname = "ward"\nunlabelled_patients = true\nmin_patients = 3\n'
    (hospital.site.folder / "site.toml").write_text(text, encoding="utf-8")
    (hospital.site.cohort_folder / "cohort.sqlite").write_bytes(b"damaged")
    answer = answered(kind, alone_study())
    assert answer.has_error() and answer.error.reason == "E_SITE_UNLABELLED"
