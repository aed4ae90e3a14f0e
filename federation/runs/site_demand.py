"""What runs ask of each hospital, beside the limits that a hospital's site.toml has by default."""

from collections import Counter
from collections.abc import Sequence

from federation.approval.studies import study_digest
from federation.gateway.questions import questions_of
from federation.protocol.study_config import Study
from federation.runs import reasons
from models.refusal import Refusal
from pipeline.site.folder import GatewayTable


def beyond_defaults(studies: Sequence[Study]) -> Refusal | None:
    """Return the warning W_SITE_LIMITS if these runs together ask for more than usual hospitals allow; else None.

    The server does not know what its hospitals allow: a hospital may have raised its limits, or lowered them.
    """
    limits = GatewayTable()
    rounds = sum(training_rounds(study) for study in studies if not study.network.pretrains)
    pretraining = sum(study.study.rounds for study in studies if study.network.pretrains)
    questions = sum(sum(questions_of(study).values()) for study in studies)
    epochs = max((study.epochs_a_round for study in studies if not study.study.local_steps), default=0)
    batch = max((study.training.batch_size for study in studies), default=0)
    asked = [
        ("training rounds", rounds, "max_rounds_a_day"),
        ("training rounds", rounds, "max_rounds_a_month"),
        ("answers about models", questions, "max_questions_a_month"),
        ("rounds of pretraining", pretraining, "max_pretraining_rounds_a_month"),
        ("epochs a round", epochs, "max_local_epochs"),
        ("scans in a batch", batch, "max_batch_size"),
        ("changes of the hospitals in a sum", least_changes(studies), "max_sum_changes"),
    ]
    too_much = [
        f"{number} {what} ({key} = {limit})"
        for what, number, key in asked
        if number > (limit := int(getattr(limits, key)))
    ]
    return Refusal(reasons.SITE_LIMITS, asked=", ".join(too_much)) if too_much else None


def least_changes(studies: Sequence[Study]) -> int:
    """Return how often the hospitals in the sum change at each hospital even if none drops out; of the study with most.

    A run with groups sums over a group in its rounds and over all hospitals in its questions, which is one change. All
    other changes come from hospitals that drop out, which nobody knows beforehand. A hospital counts them over all runs
    that have the same study digest, whatever their seeds.
    """
    grouped = [study for study in studies if study.aggregation.groups and questions_of(study)]
    runs = Counter(study_digest(study.model_dump_json()) for study in grouped)
    return max(runs.values(), default=0)


def training_rounds(study: Study) -> int:
    """Return for how many rounds a run of this study trains at one hospital, at most."""
    asked, sites = study.evaluation, study.study.sites
    trainings = 1 + int(asked.local_models)
    if asked.leave_one_out:
        trainings += study.compared - int(study.compared == sites)  # a hospital has no part in the one without it
    return trainings * study.study.rounds + int(asked.fine_tune)
