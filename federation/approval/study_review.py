"""Describe a study in plain words to the person at the hospital who decides whether it may run."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from federation.approval.studies import FREE_KEYS
from federation.protocol.tensor_bounds import is_measured
from models.own_packages import Kind

if TYPE_CHECKING:
    from federation.protocol.study_config import Study

FEW_PATIENTS_A_STEP = 8
MANY_ROUNDS = 50
HIGH_RATE = 0.1
MANY_TABULAR = 8
_CODE = (
    "It runs in the sandbox. Code can be written so that an update reveals single patients, or so that a private study "
    "adds no noise, and no limit of the gateway stops that: somebody must have read it. The package needs its own "
    "approval (`fedthorax node approve-network`)."
)
_OF_PACKAGES: dict[Kind, str] = {
    "network": f"The network {{name}} is code of a package. It computes on this hospital's scans. {_CODE}",
    "loss": f"The loss {{name}} is code of a package. It sees the model's answers and the labels of this hospital's "
    f"training patients, and decides what the model learns from each. {_CODE}",
    "transform": f"The transform {{name}} is code of a package. It changes this hospital's training scans before each "
    f"use. {_CODE}",
    "strategy": "The strategy {name} is code of a package. It runs on the server alone, so its package needs no "
    "approval here. It is not known how well it withstands hostile sites. This hospital's gateway limits how far the "
    "model moves, as with every strategy.",
}


_LEARNT = {
    "auxiliary": "measures that the node computes from each scan: dense lung by zone, the lungs' volumes, their mean "
    "density",
    "hidden_blocks": "to estimate the mean density of the lung in blocks of the scan that the node hides from it. "
    "Together these densities are a coarse picture of a scan. What an update reveals of it was measured "
    "only in part",
}
_PRETRAINING = (
    "Pretraining: this study trains on patients without labels too. It uses the scans of this hospital's training "
    "patients and of all patients without labels that it keeps (unlabelled_patients in site.toml), if these are at "
    "least min_patients. The network learns {learnt}. It uses no label, age or sex. The weights leave as in other "
    "studies, and the training loss. It runs only if max_pretraining_rounds_a_month in [gateway] of site.toml allows "
    "its rounds."
)


@dataclass(frozen=True)
class StudyReview:
    """A study's digest, its settings (table, key, value), and the settings that weaken privacy."""

    digest: str
    presets: tuple[str, ...]
    settings: list[tuple[str, str, str]]
    weakens: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def review_study(study: "Study", digest: str, presets: tuple[str, ...]) -> StudyReview:
    """Review a study without running any part of it."""
    content = study.model_dump(mode="json")
    rows = [
        (table, key, _text(value))
        for table, keys in content.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if table != "study" or key not in FREE_KEYS
    ]
    return StudyReview(digest, presets, rows, weakenings(study))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def weakenings(study: "Study") -> list[str]:
    """List in plain words each setting that lets a server learn more about a patient than the safest setting would."""
    learnt = _LEARNT.get(study.network.outputs)
    of_pretraining = [_PRETRAINING.format(learnt=learnt)] if learnt else []
    of_study = [*_of_privacy(study), *_of_sums(study), *_of_training(study), *_of_evaluation(study)]
    return [*of_pretraining, *of_study, *_of_scans(study)]


def _of_scans(study: "Study") -> list[str]:
    from pipeline.preprocessing.preprocess_settings import Preprocessing

    usual = Preprocessing().shape
    if all(size <= known for size, known in zip(study.preprocessing.shape, usual, strict=True)):
        return []
    voxels = " x ".join(map(str, study.preprocessing.shape))
    return [
        f"Scans of {voxels} voxels: the known attacks, and the limits on how far weights may move, were tried only on "
        f"scans of at most {' x '.join(map(str, usual))} voxels. It is not known whether a server learns more "
        "from finer ones."
    ]


def _of_privacy(study: "Study") -> list[str]:
    if study.privacy is None:
        return [
            "No differential privacy: this hospital's updates are sent without noise. No mathematical bound limits "
            "what an update reveals about one patient."
        ]
    if study.privacy.noise_multiplier < 1:
        return [
            f"The noise of differential privacy is low (noise_multiplier {study.privacy.noise_multiplier:g}). "
            "Below 1 a few rounds use up most of a site's budget."
        ]
    return []


def _of_sums(study: "Study") -> list[str]:
    if study.network.pretrains:  # never masked, and there are no answers
        figure = "" if study.aggregation.summed_answers else " and its training loss"
        return [f"This hospital's updates{figure} leave on their own instead of in a sum over the hospitals."]
    if not study.sums_answers:
        return [
            "This hospital's figures and answers leave on their own instead of in a sum over the hospitals. A server "
            "that chooses its models well learns age band, sex and outcome of some validation and test patients."
        ]
    if not study.aggregation.groups:
        return []
    return [
        f"Sums of groups: the hospitals are dealt out to {study.aggregation.groups} groups of at least three, and the "
        "server learns each group's sum instead of one sum over all hospitals. If the other hospitals of this one's "
        "group help the server, it learns this hospital's update. A hospital that wants larger groups sets min_peers "
        "in site.toml."
    ]


def _of_training(study: "Study") -> list[str]:
    training, table = study.training, study.study
    found = []
    if table.begin_from:
        found.append(
            "It begins with the weights of a release, not with weights from the seed. The maker of that release chose "
            "the weights that the first update depends on. The release needs its own approval (`fedthorax node "
            "approve-release`)."
        )
    if not training.augment and not study.network.encoder:
        found.append("Augmentation is off: scans are not varied, so an update follows single scans more closely.")
    if training.batch_size < FEW_PATIENTS_A_STEP:
        found.append(f"A training step uses only {training.batch_size} patients: each has more influence on it.")
    if 0 < table.local_steps < FEW_PATIENTS_A_STEP:
        found.append(f"A round has only {table.local_steps} training steps: an update is close to a single gradient.")
    if training.learning_rate > HIGH_RATE:
        found.append(f"The learning rate is high ({training.learning_rate:g}): each patient changes the weights more.")
    found += [_OF_PACKAGES[part.kind].format(name=part.name) for part in study.own_parts]
    if study.network.encoder:
        stages = study.network.tuned_stages
        part = f"Its last {stages} of 4 stages and a head" if stages else "Only a head"
        found.append(
            f"The features come from a frozen encoder ({study.network.encoder[:12]}) that is not part of this release. "
            f"{part} on its {study.network.encoder_features} features {'are' if stages else 'is'} trained and sent. "
            "Weights of an encoder can be made so that a feature responds to single patients, and an update of the "
            "head then reveals their labels: somebody must know where the weights come from. The encoder needs its own "
            "approval (`fedthorax node approve-encoder`)."
        )
        if not stages and study.privacy is None:
            found.append(
                "The features of a scan are the same in each round. A server that has a patient's scan can often tell "
                "from the updates whether this hospital trained on it (AUROC 0.75 with synthetic patients, 0.71 if it "
                "sees only sums of three hospitals). Differential privacy bounds that (0.58)."
            )
    if study.network.pretrains or not is_measured(study.network):
        on_encoder = "stages of an encoder and a head" if study.network.tuned_stages else "a head on an encoder"
        network = on_encoder if study.network.encoder else study.network.architecture
        network += " in a pretraining" if study.network.pretrains else ""
        found.append(
            f"The network ({network}) was not measured in this form: it is not known how far its "
            "weights move in honest training, compared with the limits on how far a server may move them. An honest "
            "run may be refused, and the limits may stop less than for the usual networks."
        )
    if study.network.tabular_features > MANY_TABULAR:
        found.append(
            f"{study.network.tabular_features} features are computed from age and sex: with more features, smaller "
            "groups of patients can be distinguished."
        )
    if table.rounds > MANY_ROUNDS:
        found.append(f"{table.rounds} rounds: each round sends one more update learnt from the same patients.")
    return found


def _of_evaluation(study: "Study") -> list[str]:
    asked = study.evaluation
    found = []
    if asked.local_models:
        found.append(
            "Local models: a model trained only at this hospital is sent. Models of other hospitals, which were not "
            "trained here, are evaluated on this hospital's test patients."
        )
    if asked.leave_one_out:
        found.append(
            "Leave one out: there is one additional training per site. Models that were not trained here are evaluated "
            "on this hospital's test patients."
        )
    if asked.fine_tune:
        found.append("Fine tuning: a head that was fitted only to this hospital's patients is sent.")
    if study.privacy is None and not study.network.pretrains:
        found.append(
            "Familiarity of scans: means and variances of the network's features, and of what scans look like, over "
            "the training patients are sent once."
        )
    if study.audits:
        found.append(
            "Shortcut audit: figures over all patients are sent, of how well the scanner's tags predict the label and "
            "the network's features predict the scanner."
        )
    return found
