"""Process the one current task, from the server to the node and back: decide on it, and record the decision.

A SuperNode works on one message at a time. The gateway fetches a task, checks it and offers it to the node. It receives
the node's reply into the spool, checks it as a whole, and composes a new reply for the server. If it refuses at any
point, it answers the server with the refusal's code, so that the round goes on without this site. The node receives no
new task until the answer to the current one was delivered.
"""

import asyncio
import functools
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, Literal, cast

from flwr.app import MetricRecord

from federation.approval import reasons as approval_reasons
from federation.approval.approvals import Approvals
from federation.flower.messages import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    Node,
    ObjectTree,
    PullMessagesRequest,
    PullMessagesResponse,
    PullObjectResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    PushObjectRequest,
)
from federation.gateway import reasons
from federation.gateway.about import about_site
from federation.gateway.admission import Admission
from federation.gateway.first_model import heads_of, model_digest
from federation.gateway.flower_objects import Arrays, Content, object_id, with_content
from federation.gateway.masked_only import check_masked
from federation.gateway.masked_rounds import NO_LIST, MaskedRounds
from federation.gateway.model_votes import ModelVotes
from federation.gateway.policy import policy_digest
from federation.gateway.questions import EMBED, KeptAnswer
from federation.gateway.reply import Outgoing, Records, compose_failure, compose_records, compose_reply
from federation.gateway.reply_checks import Rules, Values, check_reply
from federation.gateway.reply_intake import Reception
from federation.gateway.reply_sender import Departures
from federation.gateway.spool import Spool
from federation.gateway.task_checks import max_objects, task_kind
from federation.gateway.task_intake import Arrivals, Run, Task
from federation.gateway.task_state import Answering, AtNode, Checking, CurrentTask, Idle, Replying
from federation.gateway.upstream import Upstream
from federation.ledger.chain import PASSED, Entry, Head, Ledger
from federation.protocol import reasons as protocol_reasons
from federation.protocol.error_codes import OF_APPS, code_in
from federation.protocol.metric_allowlist import EPSILON, EXAMPLES, HANDSHAKE
from federation.protocol.patient_counts import Patients, count_patients, training_patients
from federation.secure_aggregation.ballots import NO_VOTE, WORSE, Answer
from federation.secure_aggregation.messages import Header
from models.refusal import Reason, Refusal
from pipeline.site.folder import Site

# How long a pull waits for a task, and then how long for its checks; Flower's node gives up after 30 s.
HOLD_SECONDS = 12.0
# The next task often follows soon after an answer. If there is none, Flower's node asks again only after 3 s. Therefore
# the gateway itself asks the server repeatedly, and less often as time passes: a task waits at most an eighth longer.
SOON_SECONDS, ASK_SECONDS, ASK_PART = 24.0, 0.25, 1 / 8
ASKS_A_SECOND = 100  # of all sites of a study together; the server needs some milliseconds for each
MAX_DELIVERIES = 3
Direction = Literal["in", "out", "here"]

log = logging.getLogger("fedthorax.gateway")


class Forbidden(Exception):
    """The node asked for something outside its current task; Flower's node then abandons what it was doing."""


class Exchange:
    """The site's current task (see the module). Call `started` first.

    `current`: the task and its state. `node_id`: the id that the server assigned.
    """

    def __init__(self, site: Site, upstream: Upstream, *, ledger: Ledger, approvals: Approvals, spool: Spool) -> None:
        self._site, self._upstream, self._ledger, self._spool = site, upstream, ledger, spool
        self._arrivals = Arrivals(site, upstream, approvals, ledger, spool)
        self._departures = Departures(upstream, spool.going_out.get)
        self._policy = policy_digest(site.settings)
        self._admission = Admission(spool.folder, site.settings.gateway, min_patients=site.settings.site.min_patients)
        self._masked = MaskedRounds(site, upstream, spool, self._note)
        self._votes = ModelVotes(spool.folder / "votes")
        self._pulling, self._ending = asyncio.Lock(), asyncio.Event()
        self._sites = 1  # of the last study
        self.current = CurrentTask()
        self.node_id = 0

    async def started(self) -> None:
        """Report to the server a task that an earlier gateway accepted but did not answer.

        Complete the memory from the ledger, and go on with the last steps of a masked round. Raises Refusal and OSError
        as `Arrivals.started` does.
        """
        await self._arrivals.started()
        self._masked.finish()
        try:
            left = self._spool.unanswered
            task = Task.remembered(left) if left else None
        except (Refusal, OSError) as error:  # whatever the file holds, the gateway must start
            await self._drop(b"", _unanswerable(error))
            self._spool.forget()
            return
        if task is not None:
            self.current.offer(task)  # the node may have it from the earlier gateway
            self._refuse(task, Refusal(reasons.GATEWAY_ENDED))

    def node_restarted(self) -> None:
        """Handle a restart of the node: discard its partial reply; it will receive its task again."""
        if self.current.discard_reply():
            self._spool.going_out.clear()

    def end(self) -> None:
        """Let the node wait for its next task no longer: the gateway ends."""
        self._ending.set()

    # --- the incoming task --------------------------------------------------------------------------------

    async def pull(self) -> PullMessagesResponse:
        """Return the next task for the node, if there is one. Raises Unreachable, Declined."""
        async with self._pulling:
            hold_s = min(HOLD_SECONDS, SOON_SECONDS)
            until = asyncio.get_running_loop().time() + hold_s
            if isinstance(state := self.current.state, Answering):
                await asyncio.wait({state.delivery}, timeout=hold_s)
            match self.current.state:
                case Idle(answered):
                    checking = await self._begin(answered, until)
                    return await self._hold(checking) if checking else PullMessagesResponse()
                case Checking() as checking:
                    return await self._hold(checking)
                case AtNode() | Replying() as at_node:
                    return self._offer_again(at_node)
                case Answering():
                    return PullMessagesResponse()

    async def _begin(self, answered: float, until: float) -> Checking | None:
        """Ask the server for a task, and begin to check it."""
        response = await self._next(answered, until)
        if not response.messages_list:
            return None
        try:
            task = Task.of(response, self.node_id)
        except Refusal as refusal:
            await self._drop(response.messages_list[0].metadata.SerializeToString(), refusal)
            return None
        return self.current.check(task, self._take_in(task))

    async def _next(self, answered: float, until: float) -> PullMessagesResponse:
        """Ask the server for the node's next message; soon after an answer, ask repeatedly until `until`."""
        request, clock = PullMessagesRequest(node=Node(node_id=self.node_id)), asyncio.get_running_loop().time
        while True:
            response = await self._upstream.ask("pull-messages", request, PullMessagesResponse)
            since = clock() - answered
            pause = max(ASK_SECONDS, self._sites / ASKS_A_SECOND, ASK_PART * since)
            if response.messages_list or since > SOON_SECONDS or clock() + pause > until:
                return response
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
                return response

    async def _hold(self, checking: Checking) -> PullMessagesResponse:
        """Wait for the checks, but not for longer than the node does; offer the task if it passed."""
        await asyncio.wait({checking.checks}, timeout=HOLD_SECONDS)
        is_accepted = checking.checks.done() and checking.checks.result()
        return self._offer(checking.task) if is_accepted else PullMessagesResponse()

    async def _take_in(self, task: Task) -> bool:
        """Return whether the node may have the task; if not, answer the server."""
        try:
            await asyncio.to_thread(self._spool.remember, task.message.SerializeToString())
            await self._arrivals.examine(task)
            self._sites = _sites_of(task)
            await self._record_memory(task)
            await self._record(task, "in", task.kind, task.size, task.id, PASSED)
            log.info("accepted for the node: %s, round %s", task.kind, task.round)
            if (earlier := task.earlier) is None:
                return True
            self._answer(task, lambda _: self._answer_again(task, earlier))
        except Refusal as refusal:
            self._refuse(task, refusal, "in")
        except Exception:
            log.exception("the task could not be checked")
            self._refuse(task, Refusal(approval_reasons.GATEWAY_FAILED), "in")
        return False

    def _offer(self, task: Task) -> PullMessagesResponse:
        self.current.offer(task)
        task.deliveries += 1
        task.offered_at = time.monotonic()
        return PullMessagesResponse(messages_list=[task.message], message_object_trees=[task.tree])

    def _offer_again(self, state: AtNode | Replying) -> PullMessagesResponse:
        """Handle a node that asks for work while it has a task: it restarted, or dropped the task or its reply."""
        if isinstance(state, Replying) or state.task.deliveries >= MAX_DELIVERIES:
            self._refuse(state.task, Refusal(protocol_reasons.SITE_FAILED, private="the node dropped the task"))
            return PullMessagesResponse()
        return self._offer(state.task)

    def run(self, run_id: int) -> Run:
        """Return the run of the node's task. Raises Forbidden for any other run."""
        run = self._at_node(run_id).run
        if run is None:
            raise Forbidden
        return run

    async def object(self, run_id: int, id: str) -> PullObjectResponse | BytesIO:
        """Return the response with an object of the node's task. Raises Forbidden, Unreachable."""
        task = self._at_node(run_id)
        if id not in task.small and id not in task.chunks:
            return PullObjectResponse()
        content = task.small[id] if id in task.small else await self._chunk(task, id)
        answer = PullObjectResponse(object_found=True, object_available=content is not None)
        return with_content(answer, content or b"")

    async def _chunk(self, task: Task, id: str) -> bytes | None:
        try:
            return await self._arrivals.chunk(task, id)
        except (Refusal, OSError) as error:
            self._refuse(task, _refusal(error), "in")
            raise Forbidden from error

    async def confirm(self, run_id: int) -> ConfirmMessageReceivedResponse:
        """Tell the server that the node has the whole task. Raises Forbidden, Unreachable, Declined."""
        task = self._at_node(run_id)
        for id in task.chunks:  # chunks that the node already had; the gateway needs them to check the reply
            if id not in self._spool.came_in:
                await self._chunk(task, id)
        node = Node(node_id=self.node_id)
        request = ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=task.id)
        return await self._upstream.ask("confirm-message-received", request, ConfirmMessageReceivedResponse)

    def _at_node(self, run_id: int) -> Task:
        """Return the task that the node has. Raises Forbidden if it has none, or one of another run."""
        state = self.current.state
        if not isinstance(state, AtNode | Replying) or state.task.run_id != run_id:
            raise Forbidden
        return state.task

    # --- the outgoing reply -------------------------------------------------------------------------------

    def announce(self, request: PushMessagesRequest) -> PushMessagesResponse:
        """Begin to receive the node's reply, to be checked once complete. Raises Forbidden if it answers no task."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise Forbidden
        message, tree = request.messages_list[0], request.message_object_trees[0]
        task = self._at_node(message.metadata.run_id)
        if message.metadata.reply_to_message_id != task.id:
            raise Forbidden
        # Measured with the gateway's clock, because the app could choose the number that the node reports.
        task.runtime_s = time.monotonic() - task.offered_at
        results = {message.metadata.message_id: 0}
        if message.HasField("error"):
            self._refuse_with(task, code_in(message.error.reason, OF_APPS))
            return PushMessagesResponse(results=results)
        try:
            reply = self._reception(task, tree)
        except Refusal as refusal:
            self._refuse(task, refusal)
            return PushMessagesResponse(results=results)
        return PushMessagesResponse(results=results, objects_to_push=reply.missing(), session_id=reply.session)

    def _reception(self, task: Task, tree: ObjectTree) -> Reception:
        """Return the reply that the node announces, which it may have begun to send."""
        state = self.current.state
        if isinstance(state, Replying) and state.reply.root == tree.object_id:
            return state.reply
        assert task.run is not None
        kind, schema = task_kind(task.kind), task.run.schema
        most = max_objects(schema.gives(kind))
        reply = Reception(tree, self._spool.going_out, max_array_bytes=schema.reply_bytes(kind), max_objects=most)
        self.current.receive(task, reply)
        return reply

    async def take(self, request: PushObjectRequest) -> bool:
        """Store one object of the reply; return whether it was as announced. Raises Forbidden outside a reply."""
        state = self.current.state
        reply = state.reply if isinstance(state, Replying | Answering) else None
        if reply is None or request.session_id != reply.session:
            raise Forbidden
        if not isinstance(state, Replying):  # a repeated request, or the task is being answered
            return True
        try:
            await reply.take(request.object_id, request.object_content)
        except (Refusal, OSError) as error:
            self._refuse(state.task, _refusal(error))
            return False
        if self.current.state is state and not reply.missing():
            self._answer(state.task, lambda _: self._judge(state.task, reply))
        return True

    async def _judge(self, task: Task, reply: Reception) -> Outgoing:
        """Return the reply as it may leave, or an answer with the code of its refusal."""
        try:
            return await self._compose(task, reply)
        except Refusal as refusal:
            return await self._failure(task, refusal.code, refusal, root=reply.root)
        except Exception:
            log.exception("the reply could not be checked")
            return await self._failure(task, approval_reasons.GATEWAY_FAILED.code)

    async def _answer_again(self, task: Task, earlier: KeptAnswer) -> Outgoing:
        """Return the earlier answer to the same question, without asking the node."""
        try:
            return await self._compose_again(task, earlier)
        except Refusal as refusal:
            return await self._failure(task, refusal.code, refusal, root=task.id)
        except Exception:
            log.exception("the earlier answer could not be repeated")
            return await self._failure(task, approval_reasons.GATEWAY_FAILED.code)

    async def _compose_again(self, task: Task, earlier: KeptAnswer) -> Outgoing:
        for id, chunk in earlier.chunks.items():
            await asyncio.to_thread(self._spool.going_out.put, id, chunk)
        await self._record_memory(task, *self._admission.remembered(task.asked()))  # a crash may have come before
        content = Content(arrays=heads_of(earlier.arrays))
        return await self._let_out(task, content, {"metrics": MetricRecord(dict(earlier.figures))})

    async def _compose(self, task: Task, reply: Reception) -> Outgoing:
        """Compose the message that replaces the node's reply. Raises Refusal, or OSError if the disk is full."""
        content = reply.content()
        settings = self._site.settings
        assert task.run is not None
        asked, came_in, going_out = task.asked(), self._spool.came_in, self._spool.going_out
        patients = await asyncio.to_thread(count_patients, self._site, pretrains=task.run.schema.pretrains)
        await asyncio.to_thread(self._admission.check_model, asked, came_in.get)
        rules = Rules(
            kind=asked.kind,
            schema=task.run.schema,
            came_in=Arrays(task.content.arrays, came_in.get),
            patients=patients,
            min_patients=settings.site.min_patients,
            max_update=settings.gateway.max_update,
            histograms=settings.gateway.histograms,
            embeddings=settings.gateway.embedding_statistics,
            about=await self._about(task),
        )
        values = await asyncio.to_thread(check_reply, content, going_out.get, rules)
        if asked.kind == EMBED and await asyncio.to_thread(training_patients, self._site) != task.cohort:
            raise Refusal(reasons.COHORT_CHANGED)  # the means may be over others than those that were checked
        if task.epsilon is not None:
            values["metrics"][EPSILON] = task.epsilon
        figures = dict(values["metrics"]) if "metrics" in values else {}
        vote = await self._vote(task, figures, patients)
        remember = functools.partial(self._admission.remember, asked, came_in.folder, content, figures, going_out.get)
        await asyncio.to_thread(remember, is_worse=vote == WORSE)
        await self._record_memory(task, *self._admission.remembered(asked))
        return await self._let_out(task, content, values, vote)

    async def _vote(self, task: Task, figures: Mapping[str, Any], patients: Patients) -> Answer:
        """Return what this site says of the model of a masked round."""
        assert task.run is not None
        if not (task.run.schema.secure and task.kind == "train"):
            return NO_VOTE
        model = model_digest(task.content.arrays)
        vote = await asyncio.to_thread(self._votes.cast, task.run.name, model, figures, patients)
        if vote == WORSE:
            await self._record(task, "here", "masked: model found much worse", 0, task.id, PASSED)
        return vote

    async def _let_out(self, task: Task, content: Content, values: Values, vote: Answer = NO_VOTE) -> Outgoing:
        """Compose the reply from the checked values, and record it in the ledger.

        What the study's settings mask is masked here. Raises Refusal: as `MaskedRounds.mask` does, E_REPLY_UNMASKED.
        """
        assert task.run is not None
        schema, kind, read = task.run.schema, task_kind(task.kind), self._spool.going_out.get
        records = compose_records(content, values)
        if schema.masks(kind):
            await self._record(task, "here", "masking", self._size(records, content), records.digest, PASSED)
            content = await self._masked.mask(task, content, values, vote)
            # ε follows from the study's settings and the rounds that this site began; the server knows both.
            beside = {} if task.epsilon is None else {"metrics": MetricRecord({EPSILON: task.epsilon})}
            records = compose_records(content, beside)
        elif schema.summed and kind == "train":
            content, values = await self._with_masked_figures(task, content, values)
            records = compose_records(content, values)
        await asyncio.to_thread(check_masked, kind, records, read, schema, is_private=task.epsilon is not None)
        size = self._size(records, content)
        head = await self._record(task, "out", task.kind, size, records.digest, PASSED)
        log.info("passed to the server: %s, round %s", task.kind, task.round)
        return compose_reply(task.answerable(), records, head)

    async def _with_masked_figures(self, task: Task, content: Content, values: Values) -> tuple[Content, Values]:
        """Return a reply to training with its figures masked, or without them if there is no sum that they can join.

        An update never waits for a sum in vain: only a hospital that is not on an approved list is refused. Raises
        Refusal: E_SECAGG_ROSTER, E_SECAGG_ROSTER_SMALL, E_SECAGG_MEMBER.
        """
        figures = cast(MetricRecord, values["metrics"])
        own = MetricRecord({name: figures[name] for name in (EXAMPLES, EPSILON) if name in figures})
        beside: Values = {"metrics": own}
        try:
            masked = await self._masked.mask(task, content, values)
        except Refusal as refusal:
            if refusal.reason in NO_LIST:
                raise
            log.info("the figures of this round are left out: %s %s", refusal.code, refusal.private)
            await self._record(task, "here", f"masked: figures left out, {refusal.code}", 0, task.id, PASSED)
            return content, beside
        return Content(arrays={**content.arrays, **masked.arrays}), beside

    def _size(self, records: Records, content: Content) -> int:
        """Return the size of a reply in bytes."""
        return sum(map(len, records.objects.values())) + sum(self._spool.going_out.sizes[id] for id in content.chunks())

    async def _about(self, task: Task) -> dict[str, str]:
        """Return the site's description of itself if a handshake asks for it. Raises Refusal E_GATEWAY_FAILED."""
        if task.kind != HANDSHAKE or task.run is None:
            return {}
        return await asyncio.to_thread(about_site, self._site, task.run.study)

    # --- refusals, and the end of a task ------------------------------------------------------------------

    def _refuse(self, task: Task, refusal: Refusal, direction: str = "out") -> None:
        self._refuse_with(task, refusal.code, refusal, direction)

    def _refuse_with(self, task: Task, code: str, refusal: Refusal | None = None, direction: str = "out") -> None:
        """Answer the task with a code."""

        def failure(reply: Reception | None) -> Awaitable[Outgoing]:
            return self._failure(task, code, refusal, direction=direction, root=reply.root if reply else task.id)

        self._answer(task, failure)

    def _answer(self, task: Task, compose: Callable[[Reception | None], Awaitable[Outgoing]]) -> None:
        """Compose an answer, given the node's reply if there is one, and deliver it (see `CurrentTask.answer`)."""
        self.current.answer(task, lambda reply: self._conclude(task, compose(reply)))

    async def _drop(self, message: bytes, refusal: Refusal) -> None:
        """Record a message of the server that cannot be answered, and ignore it."""
        log.warning("dropped a message of the server: %s %s %s", refusal.code, refusal.says, refusal.private)
        digest = object_id(message)
        entry = Entry("", None, "in", "message", len(message), digest, "", self._policy, refusal.code)
        with suppress(Refusal):
            await asyncio.to_thread(self._ledger.append, entry)

    async def _failure(
        self, task: Task, code: str, refusal: Refusal | None = None, *, direction: str = "out", root: str = ""
    ) -> Outgoing:
        """Compose an answer that holds only a code; allowed without a ledger line, because it reveals no patient.

        `root`: the id of what a refusal in the direction "out" refuses.
        """
        says = f"{refusal.says} {refusal.private}" if refusal else "the app's own answer"
        log.warning("refused %s: %s (%s, round %s): %s", direction, code, task.kind, task.round, says)
        outgoing = compose_failure(task.answerable(), code)
        with suppress(Refusal):
            if refusal is not None and direction == "in":
                await self._record(task, "in", task.kind, task.size, task.id, code)
            elif refusal is not None:
                await self._record(task, "out", task.kind, self._spool.going_out.size, root, code)
            size = sum(map(len, outgoing.objects.values()))
            await self._record(task, "out", f"error {code}", size, outgoing.tree.object_id, PASSED)
        return outgoing

    async def _conclude(self, task: Task, answer: Awaitable[Outgoing]) -> None:
        """Deliver the answer, then delete all data of the task, so that the next one can come.

        This also happens after any failure; otherwise the node would never get another task. Only a gateway that is
        being stopped keeps the task, and reports it to the server at its next start.
        """
        try:
            outgoing = await answer
            is_delivered = await self._departures.deliver(task, outgoing)
            if is_delivered:
                self._masked.finish()
            else:
                log.warning("the answer was not sent: %s", reasons.RUN_OVER.says)
                with suppress(Refusal):
                    await self._record(task, "out", "dropped", 0, outgoing.tree.object_id, reasons.RUN_OVER.code)
        except Exception:
            log.exception("the answer could not be composed or sent")
        self.current.end()
        self._spool.forget()
        self._spool.clear()

    def _note(self, header: Header, kind: str, digest: str) -> None:
        """Record what happened in a masked round in the ledger."""
        self._ledger.append(Entry(header.run, header.round, "here", kind, 0, digest, header.app, self._policy, PASSED))

    async def _record(self, task: Task, direction: Direction, kind: str, size: int, digest: str, verdict: str) -> Head:
        """Append one line to the ledger. Raises Refusal E_LEDGER_WRITE, E_LEDGER_BROKEN."""
        entry = Entry(
            run=task.run.name if task.run else str(task.run_id),
            round=task.round,
            direction=direction,
            kind=kind,
            bytes=size,
            digest=digest,
            app=task.app,
            policy=self._policy,
            verdict=verdict,
        )
        return await asyncio.to_thread(self._ledger.append, entry)

    async def _record_memory(self, task: Task, *more: tuple[str, str]) -> None:
        """Append the lines from which `memory` can rebuild what this task makes the gateway remember."""
        for kind, digest in (*task.remember, *more):
            await self._record(task, "here", kind, 0, digest, PASSED)
        task.remember.clear()

    async def record_request(self, path: str, reason: Reason) -> None:
        """Record a request that no node makes in the ledger."""
        entry = Entry("", None, "out", "request", 0, object_id(path.encode()), "", self._policy, reason.code)
        with suppress(Refusal):
            await asyncio.to_thread(self._ledger.append, entry)


def _sites_of(task: Task) -> int:
    """Return how many sites the task's study expects."""
    match json.loads(task.run.study) if task.run else None:
        case {"study": {"sites": int(sites)}}:
            return sites
    return 1


def _unanswerable(error: Refusal | OSError) -> Refusal:
    """Return the refusal for a spool file that cannot be read or used."""
    return error if isinstance(error, Refusal) else Refusal(reasons.TASK_UNANSWERABLE, private=str(error))


def _refusal(error: Refusal | OSError) -> Refusal:
    """Return the refusal for an error of the disk, or the refusal itself."""
    return error if isinstance(error, Refusal) else Refusal(approval_reasons.GATEWAY_FAILED, private=str(error))
