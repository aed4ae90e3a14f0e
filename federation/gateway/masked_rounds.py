"""The gateway's part in a masked round: agree on keys, mask the reply, and help to unmask the sum.

A question about a model after the last round is a masked round as well, with a number of its own. All of this runs
after the reply was checked and before it is sent. The app has no part in it. The last steps run beside the next task,
because they wait for the other hospitals; after a restart they go on.

SITE_DIR/keys/secagg                 the gateway's key
SITE_DIR/gateway/secagg/             see `federation.secure_aggregation.store`
SITE_DIR/gateway/secagg/<run>.begun  see `unfinished_rounds`
"""

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Iterator
from functools import cached_property

from federation.approval.peers import PeerApprovals, identity_file
from federation.gateway import reasons
from federation.gateway.flower_objects import ArrayHead, Arrays, Content, object_id
from federation.gateway.masked_content import SumSettings, brought_by, checked_settings, without_parts, words_of
from federation.gateway.masked_memory import MASKED_LINE, summed
from federation.gateway.questions import Question
from federation.gateway.reply_checks import Values
from federation.gateway.schema import ArraySpec
from federation.gateway.spool import Spool
from federation.gateway.task_checks import task_kind
from federation.gateway.task_intake import Task
from federation.gateway.unfinished_rounds import LAST_SECONDS, MAX_OTHERS, Unfinished, UnfinishedRounds
from federation.gateway.upstream import Declined, Unreachable, Upstream
from federation.protocol.error_codes import code_in
from federation.protocol.masked_replies import MASKED, ROUND_FIGURES, WORDS, round_of, summed_as
from federation.protocol.summed_answers import SUMMED
from federation.secure_aggregation import reasons as secagg_reasons
from federation.secure_aggregation.ballots import NO_VOTE, Answer
from federation.secure_aggregation.canonical import canonical
from federation.secure_aggregation.groups import own_group
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.masking import Words, masked
from federation.secure_aggregation.messages import NOTHING, TRAIN, Advertised, Confirmations, Header, Sealed, Uploaded
from federation.secure_aggregation.roster import Roster
from federation.secure_aggregation.site_round import MASKED as MASKED_STEP
from federation.secure_aggregation.site_round import Limits, SiteRound
from federation.secure_aggregation.store import Store, witness_folder
from federation.superlink.masked_address import ROUND_HEADER
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.system.json_text import parse_json

PAUSE_SECONDS = 0.5
BEGIN_SECONDS = 6 * 3600.0  # as long as the slowest hospital may train
SILENT_SECONDS = 60.0  # how long the server may not know the round before the reply is masked: then it has ended
REGISTER_SECONDS = 300.0

# This hospital has approved no list of hospitals that it can mask with.
NO_LIST = (secagg_reasons.SECAGG_ROSTER, secagg_reasons.SECAGG_ROSTER_SMALL, secagg_reasons.SECAGG_MEMBER)

Note = Callable[[Header, str, str], None]
log = logging.getLogger("fedthorax.gateway")


class MaskedRounds:
    """Masked rounds of one site. `note`: writes a line of this kind and digest to the ledger."""

    def __init__(self, site: Site, upstream: Upstream, spool: Spool, note: Note) -> None:
        self._site, self._upstream, self._spool, self._note = site, upstream, spool, note
        self._peers = PeerApprovals(site)
        self._folder = spool.folder / "secagg"
        self._unfinished = UnfinishedRounds(self._folder)
        self._last_steps: dict[str, asyncio.Task[None]] = {}  # by run

    @cached_property
    def _identity(self) -> Identity:
        return Identity.kept(identity_file(self._site))

    @cached_property
    def _store(self) -> Store:
        """The store, which sites without masked rounds do not need."""
        return Store(self._folder, witness_folder(self._site.folder))

    # --- the reply ----------------------------------------------------------------------------------------

    async def mask(self, task: Task, content: Content, values: Values, vote: Answer = NO_VOTE) -> Content:
        """Return the reply with only the masked words, whose chunks are in the spool.

        `content` and `values`: the checked reply; of one to training whose update is not masked, only the figures are
        used. `vote`: what the site says of the received model. Updates are summed over the hospital's group, all else
        over all hospitals. Figures, and counts of a label, that fewer than three hospitals have are left out by all of
        them. Raises Refusal: those of `SiteRound`, `words_of` and `own_group`, E_SECAGG_SETTINGS, E_SECAGG_ROSTER,
        E_SECAGG_UNFINISHED, E_RUN_OVER.
        """
        assert task.run is not None
        kind = summed_as(task_kind(task.kind), secure=task.run.schema.secure)
        groups = task.run.schema.groups if kind == TRAIN else 0
        roster = await asyncio.to_thread(self._approved, groups)
        await self._check_room(task.run.name)
        until = min(task.expires, time.time() + BEGIN_SECONDS)
        header, settings = await self._begin(task, roster)
        came_in = Arrays(task.content.arrays, self._spool.came_in.get)
        read = self._spool.going_out.get
        words = await asyncio.to_thread(words_of, settings, task.run.schema, came_in, content, values, read, vote)
        round_ = self._round(header, roster)
        if (before := self._last_steps.pop(header.run, None)) is not None:
            before.cancel()  # another round begins: nothing is answered about the one before
        brings = brought_by(settings, values)
        own = await asyncio.to_thread(round_.advertise, brings)
        advertised = Advertised.parse(await self._ask("advertise", own.content, header, until, SILENT_SECONDS))
        sealed = await asyncio.to_thread(round_.share, advertised)
        received = Sealed.parse(await self._ask("share", sealed.content, header, until, SILENT_SECONDS))
        await asyncio.to_thread(self._unfinished.add, header, groups)
        masks = await asyncio.to_thread(round_.mask, received)
        if few := brings & ~round_.kept:
            kept = without_parts(values, settings, few)
            words = await asyncio.to_thread(words_of, settings, task.run.schema, came_in, content, kept, read, vote)
        head = await asyncio.to_thread(self._write, masked(words, masks), settings.words)
        return Content(arrays={MASKED: {WORDS: head}})

    def _approved(self, groups: int) -> Roster:
        """Return the approved list, or this hospital's group of it. Raises Refusal as `own_group`, E_SECAGG_ROSTER."""
        roster = self._peers.current()
        if roster is None:
            raise Refusal(secagg_reasons.SECAGG_ROSTER)
        return own_group(roster, groups, self._identity.public) if groups else roster

    def _round(self, header: Header, roster: Roster) -> SiteRound:
        table = self._site.settings.gateway
        # The hospitals of a round may change often. Half of the changes are kept for the answers after the last round.
        changes = table.max_sum_changes // (2 if header.kind == ROUND_FIGURES else 1)
        limits = Limits(min_peers=table.min_peers, max_changes=changes)
        return SiteRound(self._store, self._identity, roster, header, limits, self._noting(header))

    async def _begin(self, task: Task, roster: Roster) -> tuple[Header, SumSettings]:
        """Return what the server says about the round, if it is what this task and this study make it."""
        assert task.run is not None and task.round is not None
        kind, schema = task_kind(task.kind), task.run.schema
        number = round_of(kind, schema.rounds) if kind in SUMMED else task.round
        about = canonical({"run": task.run.name, "round": number, "app": task.app})
        content = await self._ask("begin", about, None, time.time() + SILENT_SECONDS)
        try:
            answer = parse_json(content)
            header, told = Header.parse(canonical(answer["header"])), answer["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(reasons.SECAGG_SETTINGS, private=str(error)[:300]) from error
        if header.roster != roster.digest:
            raise Refusal(secagg_reasons.SECAGG_ROSTER)
        what = summed_as(kind, secure=schema.secure)
        settings = checked_settings(told, what, schema, len(roster.members))
        question = Question.of(task.run.name, kind, task.content)
        own = Header(
            study=task.run.digest,
            run=task.run.name,
            round=number,
            attempt=header.attempt,
            roster=roster.digest,
            kind=what,
            model=question.model,
            asked=NOTHING if what == TRAIN else question.asked,
            settings=settings.digest,
            app=task.app,
        )
        if header != own:
            different = [name for name in Header.model_fields if getattr(header, name) != getattr(own, name)]
            raise Refusal(reasons.SECAGG_SETTINGS, private=", ".join(different))
        return header, settings

    def _noting(self, header: Header) -> Callable[[str, str], None]:
        """Return a function that writes a line about this round, and the digest that it names, to the ledger."""
        return lambda text, digest: self._note(header, f"{MASKED_LINE}{text}", digest)

    def _write(self, words: Iterator[Words], count: int) -> ArrayHead:
        """Write masked words into the spool, as Flower cuts a numpy file into chunks."""
        spec = ArraySpec("uint32", count)
        lengths = spec.chunk_bytes()
        left, waiting, ids = next(lengths), bytearray(spec.header), []
        for piece in words:
            waiting += piece.tobytes()
            while len(waiting) >= left > 0:
                ids.append(self._put(bytes(waiting[:left])))
                del waiting[:left]
                left = next(lengths, 0)
        assert not waiting and not left
        return ArrayHead(spec.dtype, (count,), tuple(ids))

    def _put(self, part: bytes) -> str:
        chunk = f"ArrayChunk  {len(part)}".encode() + b"\x00" + part
        id = object_id(chunk)
        self._spool.going_out.put(id, chunk)
        return id

    # --- the last steps -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Begin to do the last steps of the rounds whose replies were sent, beside the next task."""
        self._last_steps = {run: steps for run, steps in self._last_steps.items() if not steps.done()}
        for each in self._unfinished.all():
            if each.header.run not in self._last_steps:
                self._last_steps[each.header.run] = asyncio.create_task(self._finish(each))

    async def _finish(self, left: Unfinished) -> None:
        header = left.header
        try:
            round_ = self._round(header, await asyncio.to_thread(self._approved, left.groups))
            if round_.step >= MASKED_STEP:
                await self._reveal(round_, header, left.until)
        except Refusal as refusal:
            await self._end(header, refusal)
        except Exception:
            log.exception("the last steps of a masked round failed")
        else:
            self._unfinished.remove(header.run)

    async def _end(self, header: Header, refusal: Refusal) -> None:
        """Ask no longer about a round. What the store and the ledger know of it stays."""
        log.warning("the masked round %d ended: %s %s", header.round, refusal.code, refusal.says)
        await asyncio.to_thread(self._noting(header), f"masked round ended: {refusal.code}", header.digest)
        self._unfinished.remove(header.run)

    async def _check_room(self, run: str) -> None:
        """Limit how many runs wait for their last steps: a server that begins many would fill the disk and the memory.

        Those that nobody can finish are ended first, the oldest first. None that the server may still finish is ended:
        the server must not choose what a hospital stops. Raises Refusal E_SECAGG_UNFINISHED, E_LEDGER_WRITE,
        E_LEDGER_BROKEN.
        """
        others = [each for each in await asyncio.to_thread(self._unfinished.all) if each.header.run != run]
        waiting = len(others)
        for each in others:
            if waiting < MAX_OTHERS:
                return
            try:
                await self._check_open(each)
            except Refusal as refusal:
                if (steps := self._last_steps.pop(each.header.run, None)) is not None:
                    steps.cancel()
                await self._end(each.header, refusal)
                waiting -= 1
        if waiting >= MAX_OTHERS:
            raise Refusal(reasons.SECAGG_UNFINISHED, present=waiting, allowed=MAX_OTHERS)

    async def _check_open(self, left: Unfinished) -> None:
        """Raises Refusal if nobody can finish this round any more: E_RUN_OVER, those of `SiteRound.check_open`, and of
        `own_group`, E_SECAGG_ROSTER.
        """
        if time.time() >= left.until:
            raise Refusal(reasons.RUN_OVER, private="the masked round took too long")
        round_ = self._round(left.header, await asyncio.to_thread(self._approved, left.groups))
        await asyncio.to_thread(round_.check_open)

    async def _reveal(self, round_: SiteRound, header: Header, until: float) -> None:
        uploaded = Uploaded.parse(await self._ask("uploaded", b"", header, until))
        signed = await asyncio.to_thread(round_.confirm, uploaded)
        confirmations = Confirmations.parse(await self._ask("confirm", signed.content, header, until))
        revealed = await asyncio.to_thread(round_.reveal, confirmations)
        await asyncio.to_thread(self._note, header, *summed(header.model, header.kind))
        await self._ask("reveal", revealed.content, header, until)
        log.info("masked round %d: shares revealed for %d hospitals", header.round, len(uploaded.hospitals))

    async def _ask(
        self, step: str, content: bytes, header: Header | None, until: float, silence: float = LAST_SECONDS
    ) -> bytes:
        """Send a message, and repeat it until the server answers.

        `silence`: how long the server may be unreachable. Raises Refusal: E_RUN_OVER, or the server's.
        """
        about = {ROUND_HEADER: header.digest} if header else {}
        heard = time.time()
        while time.time() < min(until, heard + silence):
            try:
                if (answer := await self._upstream.tell(step, content, about)) is not None:
                    return answer
                heard = time.time()
            except Unreachable as error:
                log.info("%s: %s", step, error)
            except Declined as error:
                code = code_in(error.detail)
                reason = next((r for r in vars(secagg_reasons).values() if getattr(r, "code", "") == code), None)
                raise Refusal(reason or reasons.RUN_OVER, present="?", needed="?", private=str(error)) from error
            await asyncio.sleep(PAUSE_SECONDS)
        raise Refusal(reasons.RUN_OVER, private="the masked round took too long")


async def present_key(site: Site, upstream: Upstream, *, every_seconds: float = REGISTER_SECONDS) -> None:
    """Present the gateway's key to the server, again and again: the server may be new."""
    key = base64.b64encode(Identity.kept(identity_file(site)).public).decode()
    while True:
        try:
            await upstream.tell("peers", canonical({"key": key}), {})
        except (Unreachable, Declined) as error:
            log.info("the key for masked rounds was not presented: %s", error)
        await asyncio.sleep(every_seconds)
