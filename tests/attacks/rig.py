"""A hospital behind its real gateway, a server that may send anything, and a node that answers with the real app.

The hospital has approved what the template of site.toml approves: the release's own studies. They run with small scans
and the smallest network (`released_study`); all other settings are those of the release. It has also approved a list of
three hospitals. The server opens no sums, so what leaves only in a sum does not leave; see `test_sums` for sums.

A real gateway starts processes for what needs torch, each of which imports it for seconds. Here this process does their
work, with the same functions, except for a network of a package, whose code no other process may see.
"""

import atexit
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import user_config_to_proto
from flwr.proto import run_pb2
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from federation.approval.peers import PeerApprovals, identity_file
from federation.approval.presets import names_by_digest, presets
from federation.approval.reasons import RUN_CONFIG
from federation.approval.studies import StudyApprovals
from federation.client.client_app import app as own_app
from federation.gateway import masked_rounds, schema, task_exchange, task_intake
from federation.gateway.flower_objects import object_id
from federation.protocol.flat_weights import pack
from federation.protocol.metric_allowlist import Kind
from federation.protocol.reasons import BEGIN_UNLIKE
from federation.protocol.study_config import AggregationTable, Study
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.roster import Member, Roster
from models.network import SeverityNetwork, build_network
from models.network_settings import NetworkSettings
from models.refusal import Refusal
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.training.train_settings import TrainSettings
from tests.attacks.cohort import PREPROCESSING, Hospital, Patient, make_hospital
from tests.federation.gateway.fake_server import NODE_ID, Bench, NodeSide, Server
from tests.federation.gateway.messages import record_of

Arrays = dict[str, NDArray[Any]]
App = Callable[[Message, Context], Message]
_WAIT_SECONDS = 300.0


class AnyStudy(Study):
    """A study that a hostile server may write, with networks and training that this release no longer allows."""

    network: NetworkSettings = NetworkSettings()  # type: ignore[assignment]
    training: TrainSettings = TrainSettings()  # type: ignore[assignment]


_SMALL = {"architecture": "resnet10", "widen_factor": 0.0625}  # the smallest network, so that attacks take seconds


def any_study(**tables: Mapping[str, Any]) -> AnyStudy:
    """Create a study of the server; `tables` are changes to study.toml."""
    return AnyStudy.model_validate(_small(tables))


def own_study(**tables: Mapping[str, Any]) -> Study:
    """As `any_study`, within the bounds that this release sets for every study."""
    return Study.model_validate(_small(tables))


def _small(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    study = {"name": "trial", "rounds": 20, "sites": 1, "quorum": 1, **tables.get("study", {})}
    network = {**_SMALL, **tables.get("network", {})}
    others = {name: table for name, table in tables.items() if name not in ("study", "network")}
    return {"study": study, "network": network, "preprocessing": PREPROCESSING.model_dump(), **others}


def released_study(
    preset: str = "study", *, seed: int = 1, preprocessing: Preprocessing = PREPROCESSING, is_small: bool = True
) -> Study:
    """Return one of the release's own studies with small scans and the smallest network, otherwise unchanged.

    The server may choose the name, the seed and the number of sites of every study. `preprocessing`: another one, for
    scans of another size. `is_small`: False keeps the study's own network.
    """
    study = presets()[preset].model_dump()
    study["study"] |= {"name": "trial", "seed": seed, "seeds": ()}
    network = {**study["network"], **(_SMALL if is_small else {})}
    return Study.model_validate({**study, "network": network, "preprocessing": preprocessing.model_dump()})


def alone_study(*, preprocessing: Preprocessing = PREPROCESSING) -> Study:
    """Return the release's default study without sums: figures and answers leave the hospital on their own.

    No study that site.toml approves by default is like this. A hospital was persuaded to approve it (`talk_into`),
    against the warning of `fedthorax node studies`.
    """
    study = released_study(preprocessing=preprocessing)
    return study.model_copy(update={"aggregation": AggregationTable()})


@dataclass
class HostileServer(Server):
    """A server in which each run has a study and a name; it also counts its questions."""

    runs: dict[int, tuple[str, str]] = field(default_factory=dict)

    def get_run(self, body: bytes) -> Any:
        run_id = run_pb2.GetRunRequest.FromString(body).run_id
        study, name = self.runs[run_id]
        config = user_config_to_proto({"study": study, "run": name})
        return run_pb2.GetRunResponse(
            run=run_pb2.Run(run_id=run_id, fab_hash=object_id(self.app), override_config=config)
        )


@dataclass(frozen=True)
class Answer:
    """What the server receives for one question: a code, or the arrays by record and the figures."""

    code: str
    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def buffers(self) -> Arrays:
        return dict(self.arrays.get("buffers", {}))

    def network(self, study: Study) -> SeverityNetwork:
        """Return the received model."""
        return network_of(study, dict(self.arrays["arrays"]), self.buffers)


class Refused(Exception):
    """The hospital returned a code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Rig:
    """One hospital and one server. `app` may be replaced by a hostile one."""

    def __init__(self, hospital: Hospital) -> None:
        self.hospital, self.server = hospital, HostileServer()
        self.app: App = own_app
        self.asked = 0
        self.first_code = ""
        self._ahead_seconds = 0.0
        self._bench = Bench(hospital.site, self.server)
        self._runs: dict[tuple[str, str], int] = {}

    @contextmanager
    def running(self) -> Iterator["Rig"]:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, NODE_ID, 1
        self._approve_released()
        self._approve_peers()
        clock = time.time
        failure: Exception | None = None
        before = os.environ.get("FEDTHORAX_SITE_DIR")
        os.environ["FEDTHORAX_SITE_DIR"] = str(self.hospital.site.folder)
        try:
            ahead = patch("time.time", lambda: clock() + self._ahead_seconds)
            silent = patch.object(masked_rounds, "SILENT_SECONDS", 0.0)  # a real gateway waits a minute for a sum
            soon = patch.object(task_exchange, "SOON_SECONDS", 0.0)  # a node waits for what follows a refusal
            names = patch.object(task_intake, "names_by_digest", lambda folder: _names())
            here = patch.object(schema, "in_a_process", _schema_here)
            with ahead, silent, soon, names, here, self._bench.node() as node:
                self._node: NodeSide = node
                try:
                    yield self
                except Exception as error:  # otherwise Flower's connection hides the error
                    failure = error
            if failure is not None:
                raise failure
        finally:
            self._bench.close()
            os.environ.pop("FEDTHORAX_SITE_DIR")
            if before is not None:
                os.environ["FEDTHORAX_SITE_DIR"] = before

    def _approve_released(self) -> None:
        """Approve the studies that site.toml approves by name, in their small form (`released_study`), whose digest
        differs.
        """
        for preset in self.hospital.site.settings.gateway.studies:
            self.talk_into(released_study(preset))

    def _approve_peers(self) -> None:
        """Approve a list of this hospital and two others."""
        site = self.hospital.site
        keys = [Identity.kept(identity_file(site)).public, *(bytes([number] * 32) for number in (1, 2))]
        members = [
            Member(name=name, key=key) for name, key in zip(("hospital", "other-1", "other-2"), keys, strict=True)
        ]
        PeerApprovals(site).approve(Roster(members=tuple(members)), by="the hospital")

    def talk_into(self, study: Study) -> None:
        """Approve a study that does not belong to the release."""
        StudyApprovals(self.hospital.site).approve(study.model_dump_json(), by="the hospital")

    def pass_time(self, *, days: float) -> None:
        """Advance the gateway's clock by some days."""
        self._ahead_seconds += days * 24 * 3600

    def restart_gateway(self, between: Callable[[], None] = lambda: None) -> None:
        """Stop the gateway, change the site's folder, and start it again."""
        self._bench.stop_gateway()
        between()
        self._bench.start_gateway()

    def ask(
        self,
        kind: Kind,
        study: Study,
        model: SeverityNetwork | tuple[Arrays, Arrays] | None = None,
        *,
        round_number: int = 1,
        config: Mapping[str, Any] | None = None,
        records: Mapping[str, Arrays] | None = None,
        configs: Mapping[str, ConfigRecord] | None = None,
        run: str = "trial-0123abcd",
    ) -> Answer:
        """Send one message, let the node answer it, and return what the server received.

        `config`: settings of the message; `records` and `configs`: further records of arrays and of settings.
        """
        content = RecordDict()
        if model is not None:
            arrays, buffers = pack(model) if isinstance(model, SeverityNetwork) else model
            content["arrays"] = record_of(arrays)
            if buffers:
                content["buffers"] = record_of(buffers)
        for name, extra in (records or {}).items():
            content[name] = record_of(extra)
        for name, more in (configs or {}).items():
            content[name] = more
        content["config"] = ConfigRecord({"server-round": round_number, **(config or {})})
        created_at = time.time() + self.asked * 1e-6
        metadata = {"message_type": kind, "run_id": self._run_id(study, run), "created_at": created_at}
        self._last = study, run, content, metadata
        return self.repeat()

    def repeat(self) -> Answer:
        """Send the last message again, unchanged."""
        study, run, content, metadata = self._last
        replies = len(self.server.replies)
        self.server.give(content, **metadata)
        self.asked += 1
        self._work(study, run, replies)
        answer = _answer(self.server.last_reply())
        self.first_code = self.first_code or answer.code
        return answer

    def must(self, *args: Any, **options: Any) -> Answer:
        """As `ask`, but raise Refused if the answer is a code."""
        answer = self.ask(*args, **options)
        if answer.code:
            raise Refused(answer.code)
        return answer

    def _run_id(self, study: Study, run: str) -> int:
        key = (study.model_dump_json(), run)
        run_id = self._runs.setdefault(key, 100 + len(self._runs))
        self.server.runs[run_id] = key
        return run_id

    def _work(self, study: Study, run: str, replies: int) -> None:
        """Let the node process its tasks until the server has an answer."""
        config = {"study": study.model_dump_json(), "run": run}
        deadline = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < deadline:
            if len(self.server.replies) > replies and self._is_whole():
                return
            if (task := self._node.fetch()) is not None:
                self._node.push(self.app(task, Context(1, NODE_ID, {}, RecordDict(), dict(config))))
                self._wait(replies, deadline)
            else:
                time.sleep(0.002)
        raise TimeoutError("the server has no answer")

    def _wait(self, replies: int, deadline: float) -> None:
        while not (len(self.server.replies) > replies and self._is_whole()) and time.monotonic() < deadline:
            time.sleep(0.002)

    def _is_whole(self) -> bool:
        proto, tree = self.server.replies[-1]
        return proto.HasField("error") or tree.object_id in self.server.received


def _answer(reply: Message) -> Answer:
    if reply.has_error():
        return Answer(reply.error.reason)
    content = reply.content
    arrays = {
        name: {key: array.numpy() for key, array in record.items()} for name, record in content.array_records.items()
    }
    metrics = {key: value for record in content.metric_records.values() for key, value in record.items()}
    return Answer("", arrays, metrics, dict(content.config_records.get("site", {})))


def seed_network(study: Study) -> SeverityNetwork:
    """Return the first weights of the study."""
    return build_network(study.network, seed=study.study.seed)


def network_of(study: Study, arrays: Arrays, buffers: Arrays) -> SeverityNetwork:
    from federation.client.site_tasks import load_network

    return load_network(study, arrays, buffers)


@contextmanager
def rig(
    *,
    seed: int = 1,
    settings: Mapping[str, str] | None = None,
    patients: dict[Any, int] | None = None,
    drawn: Sequence[Patient] | None = None,
    preprocessing: Preprocessing = PREPROCESSING,
) -> Iterator[Rig]:
    """Create a hospital and its gateway in a temporary folder; the arguments are those of `make_hospital`."""
    with TemporaryDirectory(prefix="attack-") as folder:
        hospital = make_hospital(
            Path(folder) / "site",
            seed=seed,
            settings=settings,
            patients=patients,
            drawn=drawn,
            preprocessing=preprocessing,
        )
        (gateway := hospital.site.folder / "gateway").mkdir(exist_ok=True, mode=0o700)
        (gateway / "schemas").symlink_to(_schemas())  # each takes seconds, and does not depend on the hospital
        with Rig(hospital).running() as made:
            yield made


_schema_in_a_process = schema.in_a_process


def _schema_here(study: str, *folders: str) -> schema.Schema:
    """Work out a schema as the gateway's process does, with the same refusals."""
    try:
        is_own = Study.model_validate_json(study).network.is_own
    except ValueError as error:
        raise Refusal(RUN_CONFIG, private=str(error)) from error
    if is_own:
        return _schema_in_a_process(study, *folders)
    try:
        return schema.work_out(study.encode(), *map(Path, folders))
    except Refusal as refusal:
        raise Refusal(BEGIN_UNLIKE, private=str(refusal)) from refusal


@cache
def _names() -> Mapping[str, list[str]]:
    """Return the names of the release's own studies by digest; they do not depend on the hospital."""
    with TemporaryDirectory(prefix="attack-names-") as folder:
        return names_by_digest(Path(folder))


@cache
def _schemas() -> Path:
    """Return a folder in which all hospitals of this process keep the schemas of studies."""
    folder = TemporaryDirectory(prefix="attack-schemas-")
    atexit.register(folder.cleanup)
    return Path(folder.name)
