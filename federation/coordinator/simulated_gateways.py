"""The gateways of simulated sites in masked rounds: a hospital's own code, with keys and state in a temporary folder.

The replies pass through the same vectors, masks and messages as between hospitals; only the ingress is left out, and
the checks of a gateway that precede its masks. One machine holds all keys here, so nothing is hidden from it: this
shows what a masked study computes, and what it costs.
"""

import asyncio
import http.client
import shutil
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from federation.approval.peers import PeerApprovals, identity_file
from federation.approval.studies import study_digest
from federation.coordinator.connected_sites import Records
from federation.coordinator.masked_study import MaskedStudy
from federation.flower.messages import GetFabResponse, GetRunResponse, Metadata, ObjectTree, ProtoMessage
from federation.gateway.first_model import Heads, chunks_of, model_digest, write_chunks
from federation.gateway.flower_objects import Content, object_id
from federation.gateway.masked_only import MASKED_KINDS
from federation.gateway.masked_rounds import NO_LIST, MaskedRounds
from federation.gateway.model_votes import ModelVotes
from federation.gateway.reply import REFUSED, compose_records
from federation.gateway.reply_checks import pieces
from federation.gateway.schema import ArraySpec, work_out
from federation.gateway.spool import Objects, Spool
from federation.gateway.task_checks import task_kind
from federation.gateway.task_intake import Run, Task
from federation.gateway.upstream import Declined, Upstream
from federation.ledger.chain import PASSED, Entry, Head, Ledger, ledger_file
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.masked_replies import MASKED, WORDS
from federation.protocol.metric_allowlist import EPSILON, EXAMPLES, Kind
from federation.protocol.patient_counts import Patients, count_patients
from federation.protocol.reply_validation import decode
from federation.protocol.study_config import Study
from federation.protocol.summed_answers import SUMMED, summands
from federation.secure_aggregation import reasons
from federation.secure_aggregation.ballots import NO_VOTE, Answer
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.messages import Header
from federation.secure_aggregation.roster import MIN_PEERS, Member, Roster
from federation.secure_aggregation.store import witness_folder
from federation.superlink.masked_address import PATH, SITE_HEADER, WORD_HEADER, read_address
from federation.system.process import LOOPBACK
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings

_NO_DIGEST = "0" * 64  # of the app and of the policy: nobody approves them here
_SECONDS = 60.0  # of one question to the coordinator
_DAY_SECONDS = 24 * 3600.0


class SimulatedGateways:
    """A gateway for each of the site folders `folders`, which are the nodes 1, 2, ...

    `study`: what the coordinator needs to know of the masked rounds. The keys, the approved list and what has been
    revealed end with this object, so a training that is resumed has new ones.
    """

    def __init__(self, study: Study, folders: Sequence[Path], run: str) -> None:
        """Raises Refusal E_SECAGG_ROSTER_SMALL."""
        needed = MIN_PEERS * max(study.aggregation.groups, 1)
        if len(folders) < needed:
            raise Refusal(reasons.SECAGG_ROSTER_SMALL, needed=needed, present=len(folders))
        self._temporary = TemporaryDirectory(prefix="fedthorax-masked-")
        root = Path(self._temporary.name)
        content = study.model_dump_json()
        schema, server = work_out(content.encode()), root / "server"
        server.mkdir()
        real = {node: Site.open(folder) for node, folder in enumerate(folders, start=1)}
        names = {node: site.name for node, site in real.items()}
        stand_ins = {node: init_site(root / name, site_settings(None, name=name)) for node, name in names.items()}
        keys = {names[node]: Identity.kept(identity_file(site)).public for node, site in stand_ins.items()}
        roster = Roster(members=tuple(Member(name=name, key=keys[name]) for name in sorted(keys)))
        app = _NO_DIGEST
        patients = {node: count_patients(site, pretrains=schema.pretrains) for node, site in real.items()}
        about = Run(GetRunResponse(), GetFabResponse(), app, run, schema, content, study_digest(content))
        self.gateways = {
            node: _Gateway(site, roster, about, _Loopback(server, site.name), patients[node])
            for node, site in stand_ins.items()
        }
        self._loop = asyncio.new_event_loop()
        # Each gateway waits for the others in a thread.
        self._loop.set_default_executor(ThreadPoolExecutor(4 * len(folders)))
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.study = MaskedStudy(
            run=run,
            study=about.digest,
            roster=roster,
            patients=sum(sum(each.of_split.values()) for each in patients.values()),
            folder=root / "masked",
            names=names,
            round_seconds=study.study.round_timeout_s,
            server_folder=server,
            fixed=tuple(schema.fixed(WEIGHTS)),
            is_private=study.privacy is not None,
            groups=study.aggregation.groups,
        )
        witnesses = [witness_folder(site.folder) for site in stand_ins.values()]
        weakref.finalize(self, _end, self._loop, witnesses)

    def masked(self, messages: Iterable[Message], replies: Iterable[Message]) -> Iterator[Message]:
        """Yield the replies as the gateways send them: those that need no masks first, then each once it is masked."""
        waiting: list[Future[Message]] = []
        for message, reply in zip(messages, replies, strict=True):
            if reply.has_error() or message.metadata.message_type not in MASKED_KINDS:
                yield reply
                continue
            gateway = self.gateways[message.metadata.dst_node_id]
            waiting.append(asyncio.run_coroutine_threadsafe(gateway.answer(message, reply), self._loop))
        for done in as_completed(waiting):
            yield done.result()


def _end(loop: asyncio.AbstractEventLoop, witnesses: Iterable[Path]) -> None:
    loop.call_soon_threadsafe(loop.stop)
    for folder in witnesses:  # they are not in the temporary folder, but in memory
        shutil.rmtree(folder, ignore_errors=True)


class _Gateway:
    """One gateway. `site`: a site of its own, which holds its key, its approval and its ledger, and no patient.

    `patients`: of the real site.
    """

    def __init__(self, site: Site, roster: Roster, run: Run, upstream: Upstream, patients: Patients) -> None:
        PeerApprovals(site).approve(roster, by="the simulation")
        self._run, self._ledger, self._spool = run, Ledger(ledger_file(site)), Spool(site.folder / "gateway")
        self._masked = MaskedRounds(site, upstream, self._spool, self._note)
        self.patients, self._votes = patients, ModelVotes(site.folder / "gateway" / "votes")

    async def answer(self, message: Message, reply: Message) -> Message:
        """Return the masked reply, or an error with the code of a refusal."""
        task = self._task(message)
        is_whole = self._run.schema.masks(task_kind(task.kind))
        metrics = _summands(task_kind(task.kind), reply.content.metric_records["metrics"])
        records: Records = {} if is_whole else dict(reply.content.array_records)
        try:
            sent = await self._masked_reply(task, reply, metrics)
        except Refusal as refusal:
            if is_whole or refusal.reason in NO_LIST:
                return Message(Error(REFUSED, refusal.code), reply_to=message)
            sent = Content()  # a round of training counts without its figures
        else:
            records[MASKED] = ArrayRecord({WORDS: Array(self.words(sent))})
        head = self._record(task.round, "out", task.kind, compose_records(sent, {}).digest)
        self._spool.clear()
        self._masked.finish()
        beside = {EPSILON} if is_whole else {EPSILON, EXAMPLES}
        if own := {name: metrics[name] for name in beside if name in metrics}:
            records["metrics"] = MetricRecord(own)
        return Message(RecordDict({**records, "ledger": _config_of(head)}), reply_to=message)

    async def _masked_reply(self, task: Task, reply: Message, metrics: MetricRecord) -> Content:
        """Return what is masked of a reply. Raises Refusal as `MaskedRounds.mask` does."""
        content = Content(arrays=_keep(reply.content, self._spool.going_out))
        return await self._masked.mask(task, content, {"metrics": metrics}, self._vote(task, metrics))

    def _vote(self, task: Task, metrics: MetricRecord) -> Answer:
        """Return what this gateway says of the model of a round."""
        if not (self._run.schema.secure and task.kind == "train"):
            return NO_VOTE
        return self._votes.cast(self._run.name, model_digest(task.content.arrays), metrics, self.patients)

    def _task(self, message: Message) -> Task:
        """Return the task as the gateway has it after its checks."""
        configs = {name: dict(record) for name, record in message.content.config_records.items()}
        return Task(
            ProtoMessage(metadata=Metadata(created_at=time.time(), ttl=_DAY_SECONDS)),
            ObjectTree(),
            message.metadata.message_type,
            round=int(str(configs["config"]["server-round"])),
            app=self._run.app,
            run=self._run,
            content=Content(arrays=_keep(message.content, self._spool.came_in), configs=configs),
        )

    def words(self, sent: Content) -> np.ndarray:
        head = sent.arrays[MASKED][WORDS]
        return np.concatenate(list(pieces(head, ArraySpec(head.dtype, *head.shape), self._spool.going_out.get)))

    def _note(self, header: Header, kind: str, digest: str) -> None:
        self._record(header.round, "here", kind, digest)

    def _record(self, number: int | None, direction: Literal["out", "here"], kind: str, digest: str) -> Head:
        entry = Entry(self._run.name, number, direction, kind, 0, digest, self._run.app, _NO_DIGEST, PASSED)
        return self._ledger.append(entry)


def _summands(kind: Kind, metrics: MetricRecord) -> MetricRecord:
    """Return what a gateway's checks make of an app's figures: what the site adds to the sum."""
    if kind not in SUMMED:
        return metrics
    figures = {name: float(str(value)) for name, value in metrics.items()}
    return MetricRecord({**summands(figures, kind), EXAMPLES: metrics[EXAMPLES]})


def _keep(content: RecordDict, objects: Objects) -> Heads:
    """Store the chunks of a message's arrays, and return their heads."""
    arrays = {name: decode(record) for name, record in content.array_records.items()}
    for group in arrays.values():
        for array in group.values():
            for chunk in chunks_of(array):
                objects.put(object_id(chunk), chunk)
    return write_chunks(arrays)


def _config_of(head: Head) -> ConfigRecord:
    return ConfigRecord({"head": head.sha256, "lines": head.lines})


class _Loopback(Upstream):
    """The coordinator's own port for masked rounds, with no ingress before it."""

    def __init__(self, server_folder: Path, site: str) -> None:
        self._folder, self._site = server_folder, site

    async def tell(self, path: str, content: bytes, headers: Mapping[str, str]) -> bytes | None:
        """Send a message of a masked round, as `Upstream.tell` does. Raises Declined."""
        return await asyncio.to_thread(self._tell, path, content, headers)

    def _tell(self, step: str, content: bytes, headers: Mapping[str, str]) -> bytes | None:
        if (address := read_address(self._folder)) is None:
            return None
        connection = http.client.HTTPConnection(LOOPBACK, address.port, timeout=_SECONDS)
        try:
            about = {SITE_HEADER: self._site, WORD_HEADER: address.word}
            connection.request("POST", PATH + step, content, {**headers, **about})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status not in (200, 204):
            raise Declined(answer.status, body)
        return body or None
