"""Count the questions about models: one answer per model and kind, and limits per run and per month.

Many answers about slightly different models can reveal single patients, even if each covers enough patients. So each
kind of question may be asked once about a model. If the server repeats the same question, for example after a crash,
this module returns the kept answer without asking the node. A different question about the same model is refused.

SITE_DIR/gateway/answers/<key>.json   one answer that left, without its mask; the key is derived from the model and the
                                      question's kind
"""

import base64
import hashlib
import json
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from federation.gateway import reasons
from federation.gateway.first_model import MODEL_RECORDS, heads_as_json, model_digest
from federation.gateway.flower_objects import Content
from federation.protocol.metric_allowlist import Kind
from models.refusal import Refusal
from pipeline.site.folder import MONTH_SECONDS
from pipeline.system.atomic_files import write_durably

if TYPE_CHECKING:
    from federation.protocol.study_config import Study

QUESTIONS: tuple[Kind, ...] = (
    "train.head",
    "evaluate.calibrate",
    "evaluate.test",
    "evaluate.embed",
    "evaluate.assign",
)
EMBED: Kind = "evaluate.embed"
# Settings of a message that are not part of the question.
_AROUND = {"server-round", "proximal-mu", "ledger-head", "ledger-lines"}


def questions_of(study: "Study") -> dict[str, int]:
    """Return how many models a run of this study may ask a site about, by kind of question; none in a pretraining."""
    if study.network.pretrains:
        return {}
    asked = study.evaluation
    others = sum((asked.local_models, asked.leave_one_out, asked.fine_tune))
    embeds = study.privacy is None
    return {
        "train.head": int(asked.fine_tune and embeds),
        "evaluate.calibrate": 1,
        "evaluate.test": 1 + others * study.compared,
        "evaluate.embed": int(embeds),
        # Which site's features a patient's are like cannot be asked from sums.
        "evaluate.assign": int(study.audits and not study.sums_answers),
    }


@dataclass(frozen=True)
class Question:
    """A question about a model. `asked`: the digest of everything that accompanies the model.

    `masked`: whether the answer leaves only as part of a sum.
    """

    run: str
    kind: str
    model: str
    asked: str
    masked: bool = False

    @classmethod
    def of(cls, run: str, kind: Kind, content: Content, *, masked: bool = False) -> "Question":
        """Return the question in a task's content."""
        config = {key: value for key, value in content.configs["config"].items() if key not in _AROUND}
        more = {record: heads for record, heads in content.arrays.items() if record not in MODEL_RECORDS}
        spelt = json.dumps([config, heads_as_json(more)], sort_keys=True)
        return cls(run, kind, model_digest(content.arrays), hashlib.sha256(spelt.encode()).hexdigest(), masked)

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.model}|{self.kind}".encode()).hexdigest()


@dataclass(frozen=True)
class KeptAnswer:
    """An answer that left the site, masked or not: figures by name, and the heads and chunks of its arrays, if any."""

    figures: Mapping[str, Any]
    arrays: Mapping[str, Any]
    chunks: Mapping[str, bytes]


class Questions:
    """The answers that a site gave. `a_month`: the limit of new answers in 31 days."""

    def __init__(self, folder: Path, *, a_month: int) -> None:
        self._folder, self._a_month = folder, a_month

    def earlier(self, question: Question) -> KeptAnswer | None:
        """Return the answer to the same question, if it was asked before.

        Raises Refusal: E_ASKED_ALREADY if a different question of this kind was asked about the same model;
        E_MEMORY_LOST if the answer is known only from the ledger. An answer that was masked does not leave without a
        mask in another study, and the reverse.
        """
        kept = self._kept(question.key)
        if kept is None:
            return None
        if kept.get("lost"):
            raise Refusal(reasons.MEMORY_LOST)
        if (kept["asked"], kept.get("masked", False)) != (question.asked, question.masked):
            raise Refusal(reasons.ASKED_ALREADY)
        chunks = {id: base64.b64decode(chunk) for id, chunk in kept["chunks"].items()}
        return KeptAnswer(kept["figures"], kept["arrays"], chunks)

    def check_budget(self, question: Question, allowed: Mapping[str, int]) -> None:
        """Check that one more answer may leave. `allowed`: the limit in a run, by kind.

        Raises Refusal: E_QUESTIONS_RUN, E_QUESTIONS_MONTH.
        """
        oldest = time.time() - MONTH_SECONDS
        of_run = of_month = 0
        for kept in self._all():
            of_run += (kept["run"], kept["kind"]) == (question.run, question.kind)
            of_month += kept["at"] > oldest
        if of_run >= allowed.get(question.kind, 0):
            raise Refusal(reasons.QUESTIONS_RUN, allowed=allowed.get(question.kind, 0))
        if of_month >= self._a_month:
            raise Refusal(reasons.QUESTIONS_MONTH, allowed=self._a_month)

    def check_cohort(self, cohort: Collection[str], *, min_patients: int) -> None:
        """Check that means over these training patients may leave. `cohort`: see `TrainingPatients`.

        Raises Refusal: E_COHORT_ALMOST_SAME if means over a cohort left that differs by fewer than `min_patients`
        patients, or patients with another scan; E_MEMORY_LOST if means left, and it is not known over which cohort. The
        same scans that were prepared with other settings have other names, but nearly the same means.
        """
        for kept in self._all():
            if kept["kind"] == EMBED and kept.get("lost"):
                raise Refusal(reasons.MEMORY_LOST)
            if kept["kind"] == EMBED and _are_almost_same(kept["cohort"], cohort, min_patients):
                raise Refusal(reasons.COHORT_ALMOST_SAME)

    def keep(self, question: Question, answer: KeptAnswer, cohort: Collection[str] = ()) -> None:
        """Write an answer to disk before it leaves. `cohort`: digests of the training patients that it covers.

        If this raises OSError, the answer must not leave.
        """
        content = {
            **asdict(question),
            "at": time.time(),
            "cohort": sorted(cohort),
            "figures": dict(answer.figures),
            "arrays": dict(answer.arrays),
            "chunks": {id: base64.b64encode(chunk).decode() for id, chunk in answer.chunks.items()},
        }
        self._write(question.key, content)

    def mark_lost(self, key: str, run: str, kind: str, *, at: float) -> None:
        """Note that an answer left at `at`, in seconds since 1970, unless it is kept. Raises OSError."""
        if self._kept(key) is None:
            content = {"run": run, "kind": kind, "at": at, "cohort": [], "figures": {}, "lost": True}
            self._write(key, content)

    def figures_of(self, model: str, kind: Kind) -> Mapping[str, Any] | None:
        """Return the figures that left about a model for this kind of question; None if it was not asked."""
        kept = self._kept(Question("", kind, model, "").key)
        return None if kept is None else kept["figures"]

    def _write(self, key: str, content: Mapping[str, Any]) -> None:
        self._folder.mkdir(exist_ok=True, mode=0o700)
        write_durably(self._folder / f"{key}.json", json.dumps(content).encode())

    def _kept(self, key: str) -> dict[str, Any] | None:
        try:
            return json.loads((self._folder / f"{key}.json").read_bytes())
        except FileNotFoundError:
            return None

    def _all(self) -> Iterator[dict[str, Any]]:
        for path in self._folder.glob("*.json"):
            yield json.loads(path.read_bytes())


def _are_almost_same(earlier: Collection[str], later: Collection[str], min_patients: int) -> bool:
    """Tell whether fewer than `min_patients` patients, but at least one, make the difference between two cohorts."""
    before, after = (
        {patient: scan for patient, _, scan in (each.partition("-") for each in cohort)} for cohort in (earlier, later)
    )
    joined_or_left = len(before.keys() ^ after.keys())
    with_another_scan = sum(before[patient] != after[patient] for patient in before.keys() & after.keys())
    return 0 < joined_or_left < min_patients or 0 < joined_or_left + with_another_scan < min_patients
