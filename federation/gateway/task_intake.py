"""Fetch a task from the server and check it: its run and app, its records, and the chunks of its arrays."""

import asyncio
import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage

from federation.approval.approvals import Approvals
from federation.approval.encoders import EncoderApprovals
from federation.approval.fab import read as read_app
from federation.approval.packages import PackageApprovals
from federation.approval.presets import names_by_digest
from federation.approval.releases import ReleaseApprovals
from federation.approval.studies import StudyApprovals, begins_from, study_digest
from federation.flower.messages import (
    Fab,
    GetFabRequest,
    GetFabResponse,
    GetRunRequest,
    GetRunResponse,
    Node,
    ObjectTree,
    ProtoMessage,
    PullMessagesResponse,
    PullObjectRequest,
    PullObjectResponse,
)
from federation.flower.messages import ProtoRecordDict as RecordDict
from federation.flower.pauses import FIRST_PAUSE_S, LONGEST_PAUSE_S
from federation.gateway import reasons, task_checks
from federation.gateway.admission import Admission, Asked
from federation.gateway.flower_objects import MAX_HEAD_BYTES, Content, chunk_body, object_id, read_content
from federation.gateway.memory import Memory, charged, pretrained, private
from federation.gateway.metadata import checked_metadata, run_for_node
from federation.gateway.questions import EMBED, KeptAnswer
from federation.gateway.reply import bare_message
from federation.gateway.schema import TRAINING, Schema, schema_of
from federation.gateway.spool import Spool
from federation.gateway.upstream import (
    MAX_APP_BYTES,
    MAX_BODY_BYTES,
    MAX_SMALL_BYTES,
    Answer,
    Declined,
    Unreachable,
    Unusable,
    Upstream,
)
from federation.ledger import reasons as ledger_reasons
from federation.ledger.chain import Ledger
from federation.protocol.metric_allowlist import FIGURES, HANDSHAKE
from federation.protocol.patient_counts import TrainingPatients, count_patients, training_patients
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.training.privacy_budget import check_and_spend

RETRY_SECONDS = 2.0
MAX_FETCH_SECONDS = 6 * 3600.0  # limit for fetching all of a task, even if its lifetime is longer
_AT_ONCE = 4  # concurrent requests


@dataclass(frozen=True)
class Run:
    """An allowed run: the description that the node receives, its app's hash, its name and its study (JSON)."""

    info: GetRunResponse
    fab: GetFabResponse
    app: str
    name: str
    schema: Schema
    study: str = "{}"  # JSON
    digest: str = ""  # of the study


@dataclass
class Task:
    """The one message that the site works on. The checks fill its fields step by step."""

    message: ProtoMessage
    tree: ObjectTree
    kind: str = "task"
    round: int | None = None
    app: str = ""
    run: Run | None = None
    content: Content = field(default_factory=Content)
    small: Mapping[str, bytes] = field(default_factory=dict)
    chunks: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    deliveries: int = 0  # times it was offered to the node
    cohort: TrainingPatients = field(default_factory=TrainingPatients)  # when the task arrived
    earlier: KeptAnswer | None = None  # the kept answer, if the question is a repetition
    epsilon: float | None = None  # spent in the run so far at this site, if its study is private
    offered_at: float = 0.0  # when the node last received it, by the monotonic clock
    runtime_s: float = 0.0  # from then until the node's reply
    received: float = 0.0  # in seconds since 1970
    remember: list[tuple[str, str]] = field(default_factory=list)  # kinds and digests of lines for the ledger

    @classmethod
    def of(cls, response: PullMessagesResponse, node_id: int) -> "Task":
        """Create a task from the first message of a server's response. Only its metadata and object tree are used.

        Raises Refusal E_TASK_UNANSWERABLE.
        """
        trees = response.message_object_trees
        metadata = checked_metadata(response.messages_list[0].metadata, node_id)
        message, tree = ProtoMessage(metadata=metadata, content=RecordDict()), trees[0] if trees else ObjectTree()
        return cls(message, tree, received=time.time())

    @classmethod
    def remembered(cls, content: bytes) -> "Task":
        """Create the task that an earlier gateway stored in its spool. Raises Refusal E_TASK_UNANSWERABLE."""
        try:
            message = ProtoMessage.FromString(content)
        except DecodeError as error:
            raise Refusal(reasons.TASK_UNANSWERABLE, private="the file in the spool is damaged") from error
        metadata = checked_metadata(message.metadata, node_id=0)
        kind = metadata.message_type if metadata.message_type in FIGURES else "task"
        return cls(ProtoMessage(metadata=metadata, content=RecordDict()), ObjectTree(), kind)

    @property
    def id(self) -> str:
        return self.message.metadata.message_id

    @property
    def run_id(self) -> int:
        return self.message.metadata.run_id

    @property
    def expires(self) -> float:
        """When its answer is no longer awaited, in seconds since 1970."""
        return self.message.metadata.created_at + self.message.metadata.ttl

    @property
    def given_up(self) -> float:
        """When the gateway stops fetching the task's data, in seconds since 1970."""
        return min(self.expires, self.received + MAX_FETCH_SECONDS)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(len, self.small.values())) + sum(length for length, _ in self.chunks.values())

    def asked(self) -> Asked:
        """Return the fields that `Admission` needs; its content must be known."""
        assert self.run is not None and self.round is not None
        settings = task_checks.deployed_settings(self.content.configs["config"])
        kind = task_checks.task_kind(self.kind)
        run = self.run
        return Asked(run.name, run.study, run.schema, kind, self.round, self.content, settings, self.cohort.digests)

    def answerable(self) -> Message:
        """Return the task as Flower's class, without content, to compose a reply to it."""
        return bare_message(self.message)


class Arrivals:
    """Fetches all data of a task from the server and checks it."""

    def __init__(self, site: Site, upstream: Upstream, approvals: Approvals, ledger: Ledger, spool: Spool) -> None:
        self._site, self._upstream, self._spool = site, upstream, spool
        self._approvals, self._ledger = approvals, ledger
        self._studies, self._releases = StudyApprovals(site), ReleaseApprovals(site)
        self._memory = Memory(site, spool)
        self._networks = PackageApprovals(site)
        self._encoders = EncoderApprovals(site)
        self._admission = Admission(spool.folder, site.settings.gateway, min_patients=site.settings.site.min_patients)
        self._run: Run | None = None

    async def started(self) -> None:
        """Complete the gateway's memory from the ledger. Raises Refusal and OSError as `Memory.rebuild` does."""
        await asyncio.to_thread(self._memory.rebuild)

    async def examine(self, task: Task) -> None:
        """Check everything of a task except its arrays' data, and fill in the task's fields.

        Raises Refusal: those of `task_checks`, E_RESTORED, E_APP_REFUSED, E_APP_DAMAGED, E_APPROVALS, E_STUDY_REFUSED,
        E_NETWORK_REFUSED, E_NETWORK_CHANGED, E_ENCODER_REFUSED, E_ENCODER_LEARNT, E_BEGIN_REFUSED, E_BEGIN_UNLIKE,
        E_TASK_DAMAGED, E_ROUNDS_A_DAY, E_ROUNDS_A_MONTH, E_RUN_OVER, E_PRIVACY_DOWNGRADE, those of `Admission.earlier`
        and of `check_and_spend`.
        """
        task.kind = kind = task_checks.task_kind(task.message.metadata.message_type)
        if kind != HANDSHAKE:
            await asyncio.to_thread(self._memory.check_restored)
        task.run = await self._run_of(task)
        schema = task.run.schema
        patients = await asyncio.to_thread(count_patients, self._site, pretrains=schema.pretrains)
        task_checks.check_bounds(kind, schema, self._site.settings, patients.of_split.get("train", 0))
        if task.message.metadata.reply_to_message_id or task.tree.object_id != task.id:
            raise Refusal(reasons.TASK_DAMAGED, private="it is a reply, or its objects are not its own")
        ids = task_checks.small_objects(
            task.tree, reasons.TASK_DAMAGED, most=task_checks.max_objects(schema.takes(kind))
        )
        task.small = await self._small_objects(task, ids)
        task.content = read_content(task.id, task.small, reasons.TASK_DAMAGED)
        task_checks.check_content(task.content, task_checks.tree_ids(task.tree), schema.takes(kind), kind)
        task.chunks = task_checks.expected_chunks(task.content, schema.takes(kind))
        task.round, head = task_checks.check_config(task.content.configs["config"], kind)
        task_checks.check_without_thresholds(task.content, schema)
        task_checks.check_audit(task.content, schema)
        if not await asyncio.to_thread(self._ledger.contains, head):
            raise Refusal(ledger_reasons.LEDGER_CUT, line=head.lines)
        if kind == EMBED:
            task.cohort = await asyncio.to_thread(training_patients, self._site)
        can_calibrate = patients.of_split.get("validation", 0) >= self._site.settings.site.min_patients
        earlier = functools.partial(self._admission.earlier, task.asked(), can_calibrate=can_calibrate)
        if (kept := await asyncio.to_thread(earlier)) is not None:
            task.earlier = kept
            return
        if kind in TRAINING:
            limits = self._site.settings.gateway
            if schema.pretrains:
                self._spool.count_pretraining_round(limits.max_pretraining_rounds_a_month)
                task.remember.append(pretrained())
            self._spool.count_round(limits.max_rounds_a_day, limits.max_rounds_a_month)
        if self._spool.check_privacy(schema.name, is_private=schema.private_round is not None):
            task.remember.append(private(schema.name))
        if kind == "train" and (planned := schema.private_round):
            spend = functools.partial(check_and_spend, self._site, planned, run=task.run.name)
            task.epsilon = await asyncio.to_thread(spend)
            task.remember.append(charged(planned))

    async def _run_of(self, task: Task) -> Run:
        """Return the task's run, if its app and study are allowed here now."""
        run = self._run if self._run and self._run.info.run.run_id == task.run_id else None
        task.app = run.app if run else ""
        if run is None:
            node = Node(node_id=task.message.metadata.dst_node_id)
            info = await self._ask(task, "get-run", GetRunRequest(node=node, run_id=task.run_id), GetRunResponse)
            request = GetFabRequest(node=node, hash_str=info.run.fab_hash, run_id=task.run_id)
            fab = await self._ask(task, "get-fab", request, GetFabResponse, max_bytes=MAX_APP_BYTES)
            task.app = object_id(fab.fab.content)
            if info.run.run_id != task.run_id or not task.app == info.run.fab_hash == fab.fab.hash_str:
                raise Refusal(reasons.APP_DAMAGED)
        verdict = await asyncio.to_thread(self._approvals.verdict, task.app)
        if verdict not in ("own", "approved"):
            if run is None:
                self._approvals.keep(fab.fab.content)
            raise Refusal(reasons.APP_REFUSED, private=f"{verdict}: {task.app}")
        if run is None:
            study, name = task_checks.run_config(fab.fab.content, info.run)
            digest = study_digest(study)
            await self._check_study(study, digest)  # before any part of it is processed
            schema = await asyncio.to_thread(schema_of, study, self._spool.schemas, self._releases.folder)
            response = GetRunResponse(run=run_for_node(info.run, read_app(fab.fab.content), study, name))
            app = GetFabResponse(fab=Fab(hash_str=task.app, content=fab.fab.content))
            self._run = run = Run(response, app, task.app, name, schema, study, digest)
        else:
            await self._check_study(run.study, run.digest)
        return run

    async def _check_study(self, study: str, digest: str) -> None:
        """Check that the study may run here now, and that its network and the release it starts from are approved.

        Raises Refusal: E_STUDY_REFUSED, E_NETWORK_REFUSED, E_NETWORK_CHANGED, E_BEGIN_REFUSED, E_RUN_CONFIG,
        E_APPROVALS, E_GATEWAY_FAILED.
        """
        names = await asyncio.to_thread(names_by_digest, self._spool.folder)
        verdict = await asyncio.to_thread(self._studies.verdict, digest, names.get(digest, ()))
        if verdict not in ("preset", "approved"):
            await asyncio.to_thread(self._studies.keep, study)
            raise Refusal(reasons.STUDY_REFUSED, private=f"{verdict}: {digest}")
        await asyncio.to_thread(self._networks.check, study)
        await asyncio.to_thread(self._encoders.check, study)
        begun = begins_from(study)
        if begun and not await asyncio.to_thread(self._releases.may_begin, begun):
            raise Refusal(reasons.BEGIN_REFUSED, private=begun)

    async def _small_objects(self, task: Task, ids: list[str]) -> dict[str, bytes]:
        """Fetch all objects except the chunks. The first refused object, or the time limit, stops all requests."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def fetch(id: str) -> bytes:
            async with limit:
                wait_s = FIRST_PAUSE_S
                while (content := await self._object(task, id, MAX_SMALL_BYTES, patient=True)) is None:
                    _check_patience(task, "the server has not received all of its message yet")
                    await asyncio.sleep(wait_s)
                    wait_s = min(2 * wait_s, LONGEST_PAUSE_S)
            if len(content) > MAX_HEAD_BYTES:
                raise Refusal(reasons.TASK_DAMAGED, private="a record is too large")
            return content

        try:
            async with asyncio.timeout(task.given_up - time.time()), asyncio.TaskGroup() as group:
                fetches = {id: group.create_task(fetch(id)) for id in ids}
        except TimeoutError as error:
            raise Refusal(reasons.RUN_OVER, private="fetching the task's objects took too long") from error
        except ExceptionGroup as group_error:
            raise next((e for e in group_error.exceptions if isinstance(e, Refusal)), group_error) from None
        return {id: fetched.result() for id, fetched in fetches.items()}

    async def _object(self, task: Task, id: str, max_bytes: int, *, patient: bool) -> bytes | None:
        """Fetch an object and compare it with its id; None if the server has not received it yet.

        Raises Refusal: E_TASK_DAMAGED, E_RUN_OVER; Unreachable unless `patient`.
        """
        node = Node(node_id=task.message.metadata.dst_node_id)
        request = PullObjectRequest(node=node, run_id=task.run_id, object_id=id)
        answer = await self._ask(task, "pull-object", request, PullObjectResponse, patient=patient, max_bytes=max_bytes)
        if not answer.object_found:
            raise Refusal(reasons.TASK_DAMAGED, private="the server lacks an object of its message")
        if not answer.object_available:
            return None
        content = answer.object_content  # each access to the field copies it
        if await asyncio.to_thread(object_id, content) != id:
            raise Refusal(reasons.TASK_DAMAGED, private="an object does not match its hash")
        return content

    async def chunk(self, task: Task, id: str) -> bytes | None:
        """Return a chunk of the task's arrays, fetched once and then kept in the spool; None as in `_object`.

        Raises Refusal: E_TASK_DAMAGED, E_RUN_OVER; Unreachable; OSError if the disk is full.
        """
        if id in self._spool.came_in:
            return await asyncio.to_thread(self._spool.came_in.get, id)
        if (content := await self._object(task, id, MAX_BODY_BYTES, patient=False)) is None:
            return None
        length, beginning = task.chunks[id]
        try:
            body = chunk_body(content)
        except ValueError as error:
            raise Refusal(reasons.TASK_DAMAGED, private=str(error)) from error
        if len(body) != length or body[: len(beginning)] != beginning:
            raise Refusal(reasons.TASK_DAMAGED, private="an array does not fit the model")
        await asyncio.to_thread(self._spool.came_in.put, id, content)
        return content

    async def _ask(
        self,
        task: Task,
        path: str,
        request: ProtobufMessage,
        answer: type[Answer],
        *,
        patient: bool = True,
        max_bytes: int = MAX_SMALL_BYTES,
    ) -> Answer:
        """Send a request. If `patient`, repeat it until the server answers or the task is given up.

        Raises Refusal: E_RUN_OVER, E_TASK_DAMAGED; Unreachable unless `patient`.
        """
        while True:
            try:
                return await self._upstream.ask(path, request, answer, max_bytes=max_bytes)
            except Declined as error:
                raise Refusal(reasons.RUN_OVER, private=str(error)) from error
            except Unusable as error:
                raise Refusal(reasons.TASK_DAMAGED, private=str(error)) from error
            except Unreachable as error:
                if not patient:
                    raise
                _check_patience(task, str(error))
            await asyncio.sleep(RETRY_SECONDS)


def _check_patience(task: Task, problem: str) -> None:
    """Raise Refusal E_RUN_OVER if the next attempt would come too late."""
    if time.time() + RETRY_SECONDS > task.given_up:
        raise Refusal(reasons.RUN_OVER, private=problem)
