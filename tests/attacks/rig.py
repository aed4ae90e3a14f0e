"""A hospital behind its real gateway, a server that may send anything, and a node that answers with the real app.

Two places are the rig's alone, so that attacks need not know of them: `Rig.approve`, where the hospital takes a study,
and `Rig.ask`, where a message is made.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import user_config_to_proto
from flwr.proto import run_pb2
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from federation.allowed import Kind
from federation.gateway.objects import object_id
from federation.rounds.client_app import app as own_app
from federation.rounds.packing import pack
from federation.study import Study
from models.network import SeverityNetwork, build_network
from tests.attacks.cohort import PREPROCESSING, Hospital, make_hospital
from tests.federation.gateway.fake_server import NODE_ID, Bench, NodeSide, Server
from tests.federation.gateway.messages import record_of

Arrays = dict[str, NDArray[Any]]
App = Callable[[Message, Context], Message]
_WAIT_SECONDS = 300.0


def make_study(**tables: Mapping[str, Any]) -> Study:
    """The smallest network on the cohort's tensors; `tables` change what study.toml says."""
    study = {"name": "trial", "rounds": 20, "sites": 1, "quorum": 1, **tables.get("study", {})}
    network = {"architecture": "resnet10", "widen_factor": 0.0625, **tables.get("network", {})}
    others = {name: table for name, table in tables.items() if name not in ("study", "network")}
    preprocessing = PREPROCESSING.model_dump()
    return Study.model_validate({"study": study, "network": network, "preprocessing": preprocessing, **others})


@dataclass
class HostileServer(Server):
    """A server whose runs are each a study and a name; it also counts what it asks."""

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
    """What the server has of one question: a code, or the arrays by record and the figures."""

    code: str
    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def buffers(self) -> Arrays:
        return dict(self.arrays.get("buffers", {}))

    def network(self, study: Study) -> SeverityNetwork:
        """The model that came back."""
        return network_of(study, dict(self.arrays["arrays"]), self.buffers)


class Refused(Exception):
    """The hospital answered with a code."""

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
        clock = time.time
        failure: Exception | None = None
        before = os.environ.get("FEDTHORAX_SITE_DIR")
        os.environ["FEDTHORAX_SITE_DIR"] = str(self.hospital.site.folder)
        try:
            with patch("time.time", lambda: clock() + self._ahead_seconds), self._bench.node() as node:
                self._node: NodeSide = node
                try:
                    yield self
                except Exception as error:  # Flower's connection would swallow it
                    failure = error
            if failure is not None:
                raise failure
        finally:
            self._bench.close()
            os.environ.pop("FEDTHORAX_SITE_DIR")
            if before is not None:
                os.environ["FEDTHORAX_SITE_DIR"] = before

    def approve(self, study: Study) -> None:
        """The hospital approves the study, as one that was shown to it. Today there is nothing to approve."""

    def pass_time(self, *, days: float) -> None:
        """Let days go by, as the gateway sees its clock."""
        self._ahead_seconds += days * 24 * 3600

    def restart_gateway(self, between: Callable[[], None] = lambda: None) -> None:
        """End the gateway, do something with the site's folder, and start it again."""
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
        run: str = "trial-0123abcd",
    ) -> Answer:
        """Send one message, have the node answer it, and say what reached the server."""
        content = RecordDict()
        if model is not None:
            arrays, buffers = pack(model) if isinstance(model, SeverityNetwork) else model
            content["arrays"] = record_of(arrays)
            if buffers:
                content["buffers"] = record_of(buffers)
        for name, extra in (records or {}).items():
            content[name] = record_of(extra)
        content["config"] = ConfigRecord({"server-round": round_number, **(config or {})})
        created_at = time.time() + self.asked * 1e-6
        metadata = {"message_type": kind, "run_id": self._run_id(study, run), "created_at": created_at}
        self._last = study, run, content, metadata
        return self.repeat()

    def repeat(self) -> Answer:
        """Send the last message once more, as it was."""
        study, run, content, metadata = self._last
        replies = len(self.server.replies)
        self.server.give(content, **metadata)
        self.asked += 1
        self._work(study, run, replies)
        answer = _answer(self.server.last_reply())
        self.first_code = self.first_code or answer.code
        return answer

    def must(self, *args: Any, **options: Any) -> Answer:
        """As `ask`. Raises Refused where the answer is a code."""
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
        """Have the node do what it is given, until the server has an answer to it."""
        config = {"study": study.model_dump_json(), "run": run}
        deadline = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < deadline:
            if len(self.server.replies) > replies and self._is_whole():
                return
            if (task := self._node.fetch()) is not None:
                self._node.push(self.app(task, Context(1, NODE_ID, {}, RecordDict(), dict(config))))
                self._wait(replies, deadline)
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
    """The study's first weights."""
    return build_network(study.network, seed=study.study.seed)


def network_of(study: Study, arrays: Arrays, buffers: Arrays) -> SeverityNetwork:
    from federation.rounds.local import load_network

    return load_network(study, arrays, buffers)


@contextmanager
def rig(
    *, seed: int = 1, settings: Mapping[str, str] | None = None, patients: dict[Any, int] | None = None
) -> Iterator[Rig]:
    """A new hospital and its gateway, in a temporary folder; `settings`: lines of site.toml, and what replaces them."""
    with TemporaryDirectory(prefix="attack-") as folder:
        hospital = make_hospital(Path(folder) / "site", seed=seed, settings=settings, patients=patients)
        with Rig(hospital).running() as made:
            yield made
