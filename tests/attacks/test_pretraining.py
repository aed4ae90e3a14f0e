"""A hostile server, a hostile app and a false study against pretraining, at the real gateway with the real app."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord

from federation.approval.releases import ReleaseApprovals
from federation.client.client_app import app as own_app
from federation.client.site_tasks import load_scans
from federation.coordinator.pretrained import save_start
from federation.protocol.metric_allowlist import APPEARANCE_SIZE, EXAMPLES, LOSS, Kind
from federation.protocol.patient_counts import count_patients
from federation.protocol.study_config import Study
from models.network import build_network
from pipeline.site.folder import Site
from tests.attacks.rig import Rig, own_study, rig, seed_network
from tests.attacks.test_unlabelled import FEW, add_unlabelled
from tests.federation.gateway.messages import record_of

ROUNDS = 3
SETTINGS = {
    "max_pretraining_rounds_a_month = 0": f"max_pretraining_rounds_a_month = {ROUNDS}",
    "unlabelled_patients = false": "unlabelled_patients = true",
    "min_local_steps = 4": "min_local_steps = 1",
}
LEAST = 10  # min_patients of the template


pytestmark = pytest.mark.usefixtures("quiet_and_repeatable")


def pretraining(outputs: str = "auxiliary", **tables: object) -> Study:
    return own_study(
        study={"rounds": ROUNDS, "local_epochs": 1, **tables},
        network={"outputs": outputs},
        training={"learning_rate": 0.02},
        strategy={"name": "FedAvg"},
    )


@contextmanager
def attacked(unlabelled: int, settings: dict[str, str] = SETTINGS) -> Iterator[Rig]:
    with rig(patients=dict(FEW), settings=settings) as found:
        add_unlabelled(found.hospital, unlabelled)
        found.talk_into(pretraining())
        yield found


@pytest.mark.slow
def test_hospital_that_approves_a_pretraining_must_also_allow_its_rounds() -> None:
    with attacked(LEAST, settings={}) as found:
        assert found.ask("train", pretraining(), seed_network(pretraining())).code == "E_SITE_LIMIT"
        assert found.ask("query.handshake", pretraining()).code == "E_SITE_LIMIT"


@pytest.mark.slow
def test_only_the_loss_leaves_beside_the_update_and_the_number_of_all_scans() -> None:
    with attacked(LEAST) as found:
        answer = found.must("train", pretraining(), seed_network(pretraining()))
        assert set(answer.metrics) == {LOSS, EXAMPLES}
        assert answer.metrics[EXAMPLES] == FEW["train"] + LEAST
        assert answer.network(pretraining()).head.out_features == seed_network(pretraining()).head.out_features


@pytest.mark.slow
def test_fewer_patients_without_labels_than_the_minimum_do_not_show() -> None:
    with attacked(LEAST - 1) as found:
        answer = found.must("train", pretraining(), seed_network(pretraining()))
        assert answer.metrics[EXAMPLES] == FEW["train"]


@pytest.mark.slow
def test_patients_without_labels_take_no_part_as_soon_as_the_setting_is_off() -> None:
    """Also before the next ingest removes them, in the gateway's count and in the app."""
    with attacked(LEAST) as found:
        path = found.hospital.site.folder / "site.toml"
        path.write_text(path.read_text().replace("unlabelled_patients = true", "unlabelled_patients = false"))
        site = Site.open(found.hospital.site.folder)
        assert count_patients(site, pretrains=True).of_split == {"train": FEW["train"]}
        assert len(load_scans(site, pretraining())) == FEW["train"]


@pytest.mark.slow
def test_every_question_about_a_pretrained_model_is_refused() -> None:
    typical = {name: np.ones(APPEARANCE_SIZE, np.float32) for name in ("mean", "variance")}
    kinds: tuple[Kind, ...] = (
        *("train.head", "evaluate.calibrate", "evaluate.test"),
        *("evaluate.embed", "evaluate.assign"),
    )
    with attacked(LEAST) as found:
        model = found.must("train", pretraining(), seed_network(pretraining())).network(pretraining())
        for kind in kinds:
            records = {"typical": typical} if kind == "evaluate.calibrate" else {}
            assert found.ask(kind, pretraining(), model, records=records).code == "E_TASK_KIND", kind


@pytest.mark.slow
def test_network_with_outputs_for_labels_is_not_trained_in_a_pretraining() -> None:
    with attacked(LEAST) as found:
        of_labels = build_network(pretraining("labels").network, seed=1)
        assert found.ask("train", pretraining(), of_labels).code == "E_TASK_RECORDS"
        # The study of labels that has only the name of the approved pretraining needs an approval of its own.
        assert found.ask("train", pretraining("labels"), of_labels).code == "E_STUDY_REFUSED"


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["loss_severe", "auroc_severe", "loss_pcr_positive", "epsilon"])
def test_hostile_app_reports_no_figure_of_a_label_in_a_pretraining(figure: str) -> None:
    def app(task: Message, context: Context) -> Message:
        reply = own_app(task, context)
        metrics = {**reply.content.metric_records["metrics"], figure: 0.5}
        reply.content["metrics"] = MetricRecord(metrics)
        return reply

    with attacked(LEAST) as found:
        found.app = app
        answer = found.ask("train", pretraining(), seed_network(pretraining()))
        assert answer.code in {"E_REPLY_PATIENTS", "E_REPLY_METRICS"}


@pytest.mark.slow
def test_hostile_app_sends_no_head_for_labels_and_no_other_number_of_scans() -> None:
    def other_head(task: Message, context: Context) -> Message:
        reply = own_app(task, context)
        (name,) = reply.content.array_records["arrays"]
        weights = reply.content.array_records["arrays"][name].numpy()
        reply.content["arrays"] = record_of({name: weights[:-100]})
        return reply

    def other_number(task: Message, context: Context) -> Message:
        reply = own_app(task, context)
        reply.content["metrics"] = MetricRecord({EXAMPLES: FEW["train"]})
        return reply

    with attacked(LEAST) as found:
        for hostile, code in ((other_head, "E_REPLY_SHAPE"), (other_number, "E_REPLY_EXAMPLES")):
            found.app = hostile
            assert found.ask("train", pretraining(), seed_network(pretraining())).code == code


@pytest.mark.slow
def test_rounds_of_pretraining_have_a_budget_that_survives_the_loss_of_the_gateways_folder() -> None:
    with attacked(LEAST) as found:
        for number in range(ROUNDS):
            found.must("train", pretraining(), seed_network(pretraining()), run=f"trial-{number:08d}")
        study, model = pretraining(), seed_network(pretraining())
        assert found.ask("train", study, model, run="trial-more0001").code == "E_SITE_LIMIT"
        found.restart_gateway(lambda: shutil.rmtree(found.hospital.site.folder / "gateway"))
        assert found.ask("train", study, model, run="trial-more0002").code == "E_SITE_LIMIT"
        longer = pretraining(rounds=ROUNDS + 1)
        found.talk_into(longer)
        assert found.ask("train", longer, seed_network(longer)).code == "E_SITE_LIMIT"


@pytest.mark.slow
def test_later_study_begins_only_from_an_approved_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("start")
    network = build_network(pretraining().network, seed=5)
    start = save_start(
        folder, network, pretraining(), run="r", strategy="FedAvg", rounds=[], trained_at=["north", "south"]
    )
    later = pretraining("labels", begin_from=start.sha256)
    head = build_network(later.network, seed=1).head.state_dict()
    first = build_network(later.network, seed=1)
    state = network.state_dict() | {f"head.{name}": value for name, value in head.items()}
    first.load_state_dict(state)
    with attacked(LEAST) as found:
        found.talk_into(later)
        assert found.ask("train", later, first).code == "E_BEGIN_REFUSED"
        ReleaseApprovals(found.hospital.site).approve(folder, by="the hospital")
        assert found.ask("train", later, seed_network(later)).code == "E_MODEL_FIRST"
        assert not found.ask("train", later, first).code
