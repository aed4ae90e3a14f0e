"""A site's tasks run on the processor of its [compute]; a study's needs and errors of a device become coded replies."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from federation.client import client_app, site_tasks
from federation.client.site_tasks import embed_site, fine_tune_site, judge_site, processor, train_site
from federation.protocol.error_codes import OF_APPS, code_in
from federation.protocol.flat_weights import pack
from federation.protocol.reply_validation import encode
from federation.protocol.study_config import ComputeNeed, Study
from models.compute import Compute
from models.compute_settings import ComputeSettings
from models.network import build_network
from models.refusal import Refusal
from pipeline.evaluation.figures import Deployed
from pipeline.site.folder import Site
from pipeline.training.privacy_budget import PrivacySettings
from tests.helpers.fake_gpu import GPU, fake_gpu
from tests.helpers.fake_grid import over_the_wire

STUDY = Study.model_validate(
    {
        "study": {"name": "x", "rounds": 4, "local_epochs": 1, "sites": 1, "quorum": 1},
        "network": {"architecture": "resnet10", "widen_factor": 1 / 16},
    }
)
ARRAYS, BUFFERS = pack(build_network(STUDY.network, seed=1))


@pytest.fixture
def site(small_site: Site) -> Site:
    table = small_site.settings.site.model_copy(update={"min_patients": 1})
    return replace(small_site, settings=small_site.settings.model_copy(update={"site": table}, deep=True))


def computing(site: Site, **settings: object) -> Site:
    compute = ComputeSettings.model_validate({"device": "cpu", **settings})
    return replace(site, settings=site.settings.model_copy(update={"compute": compute}))


def needing(**need: object) -> Study:
    return STUDY.model_copy(update={"compute": ComputeNeed.model_validate(need)})


def test_processor_is_that_of_the_site(site: Site) -> None:
    found = processor(computing(site, checkpointing=True, micro_batch=16, prefetch=2), STUDY)
    assert found == Compute(checkpointing=True, micro_batch=16, prefetch=2)


def test_what_a_site_computes_does_not_depend_on_how_it_saves_memory(site: Site) -> None:
    plain, saving = (
        train_site(computing(site, **settings), STUDY, ARRAYS, BUFFERS, round_number=1)
        for settings in ({}, {"checkpointing": True, "prefetch": 2})
    )
    np.testing.assert_array_equal(plain.arrays["weights"], saving.arrays["weights"])
    assert plain.buffers.keys() == saving.buffers.keys()
    assert all(np.array_equal(plain.buffers[name], saving.buffers[name]) for name in plain.buffers)
    assert plain.metrics == saving.metrics


def train(site: Site) -> object:
    return train_site(site, STUDY, ARRAYS, BUFFERS, round_number=1)


def fine_tune(site: Site) -> object:
    return fine_tune_site(site, STUDY, ARRAYS, BUFFERS)


def judge(site: Site) -> object:
    return judge_site(site, STUDY, ARRAYS, BUFFERS, Deployed({}, {}), audit=True)


def embed(site: Site) -> object:
    return embed_site(site, STUDY, ARRAYS, BUFFERS)


@pytest.mark.parametrize("task", [train, fine_tune, judge, embed])
def test_task_runs_on_a_gpu(site: Site, monkeypatch: pytest.MonkeyPatch, task: Callable[[Site], object]) -> None:
    monkeypatch.setattr(site_tasks.Compute, "open", lambda settings, threads: GPU)
    with fake_gpu() as gpu:
        task(site)
    assert gpu.computed > 20


def test_need_that_is_not_met_is_refused_with_a_code(site: Site) -> None:
    with pytest.raises(Refusal) as caught:
        train_site(computing(site), needing(device="cuda"), ARRAYS, BUFFERS, round_number=1)
    assert caught.value.code == "E_COMPUTE_NEED" and "a GPU" in caught.value.says


def test_device_that_is_not_there_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refusal, match="E_COMPUTE_DEVICE"):
        train_site(computing(site, device="cuda:7"), STUDY, ARRAYS, BUFFERS, round_number=1)


def reply(site: Site, study: Study, monkeypatch: pytest.MonkeyPatch, kind: str) -> Message:
    monkeypatch.setattr(client_app, "site_folder", lambda _: site.folder)
    monkeypatch.setattr(client_app.Site, "open", lambda _: site)
    monkeypatch.delenv("FEDTHORAX_SITE_DIR", raising=False)  # so that the app does not open a log file
    monkeypatch.setattr(logging.getLogger("fedthorax.site"), "propagate", True)  # restored after the test
    content = RecordDict({"config": ConfigRecord({"server-round": 1})})
    if kind == "train":
        content = RecordDict({"arrays": encode(ARRAYS), "buffers": encode(BUFFERS), **content})
    message = over_the_wire(Message(content, dst_node_id=1, message_type=kind))
    run_config = {"study": study.model_dump_json(), "run": "a"}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    answer = client_app.train if kind == "train" else client_app.handshake
    return over_the_wire(answer(message, context))


@pytest.mark.parametrize("kind", ["train", "query.handshake"])
def test_server_learns_the_code_alone(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    answer = reply(computing(site), needing(device="cuda"), monkeypatch, kind)
    assert answer.has_error() and answer.error.reason == "E_COMPUTE_NEED"
    assert code_in(answer.error.reason, OF_APPS) == "E_COMPUTE_NEED"


@pytest.mark.parametrize("kind", ["query.handshake", "train"])
@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"micro_batch": 4}, "E_COMPUTE_MICRO_BATCH"),
        ({"precision": "bf16"}, "E_COMPUTE_PRECISION"),
        ({"device": "cuda:7"}, "E_COMPUTE_DEVICE"),
    ],
)
def test_compute_that_cannot_train_is_refused_in_the_handshake(
    site: Site, monkeypatch: pytest.MonkeyPatch, kind: str, settings: dict[str, object], code: str
) -> None:
    """As it would be in each round, which would be lost."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert STUDY.training.batch_size > 4
    answer = reply(computing(site, **settings), STUDY, monkeypatch, kind)
    assert answer.has_error() and answer.error.reason == code


def test_batch_that_need_not_be_divided_is_no_reason_to_refuse(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part as large as the batch, group norm, a private step."""
    group = STUDY.model_copy(update={"network": STUDY.network.model_copy(update={"norm": "group"})})
    private = group.model_copy(update={"privacy": PrivacySettings(noise_multiplier=1, sample_rate=0.1)})
    for micro_batch, study in ((STUDY.training.batch_size, STUDY), (4, group), (4, private)):
        answer = reply(computing(site, micro_batch=micro_batch), study, monkeypatch, "query.handshake")
        assert not answer.has_error()


def test_memory_that_runs_out_is_a_coded_reply(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("pipeline.training.train.masked_bce", fail)
    answer = reply(computing(site), STUDY, monkeypatch, "train")
    assert answer.has_error() and answer.error.reason == "E_COMPUTE_MEMORY"
