"""The settings of a study: study.toml as one model, sent as JSON to the server's app and to every site's.

Works without torch.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from federation.secure_aggregation.roster import MAX_PEERS
from models.network_settings import NetworkSettings
from models.own_packages import CODE, NAME, Named
from models.settings import load_settings
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.training.privacy_budget import PrivacySettings, PrivateRound
from pipeline.training.train_settings import Schedule, TrainSettings

if TYPE_CHECKING:
    from models.compute import Compute

MAX_SEED = 2**31 - 1
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
MEAN_STRATEGIES = ("FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedYogi", "FedAdagrad")
LEAST_SECURE_SITES = 3  # in a sum
LEAST_SECURE_ROUNDS = 2
MAX_GROUPS = 33
# Of a pretraining. At 0.05 the first round of a small network used 1.05 of a filter's bound (`tensor_bounds`), at 0.02
# twenty rounds used 0.55 of the bounds (docs/pretraining.md).
PRETRAINING_RATE = 0.02


class StudyNetwork(NetworkSettings):
    """[network]: the networks that a study may train. Narrower than what a release may hold.

    The features of age and sex are few and fixed, and ages are grouped into bands. With many learnt features, each with
    its own threshold, one round's update would reveal age, sex and label of single patients.
    """

    tabular_features: int = Field(default=8, ge=1, le=16)
    age_band_years: Literal[5] = 5
    tabular: Literal["fixed"] = "fixed"


class StudyTraining(TrainSettings):
    """[training] of a study: its limits keep each step an average over many patients."""

    learning_rate: float = Field(default=0.05, ge=1e-4, le=0.5)
    momentum: float = Field(default=0.9, ge=0.5, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=0.1)


class StudyTable(BaseModel, extra="forbid"):
    """[study]: duration, participants and conditions."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    rounds: int = Field(ge=1, le=1000)
    local_epochs: int = Field(default=2, ge=1, le=50)
    local_steps: int = Field(default=0, ge=0, le=100_000)  # optimiser steps per round instead of epochs; 0: epochs
    seed: Seed = 1
    seeds: tuple[Seed, ...] = ()  # one run per seed; empty: one run with `seed`
    begin_from: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")  # the release with the first weights
    sites: int = Field(ge=1)  # how many sites to wait for before round 1
    sites_per_round: int = Field(default=0, ge=0)  # how many sites are drawn for each round; 0: all connected ones
    quorum: int = Field(ge=1)  # with fewer valid replies, a round is lost
    wait_s: float = Field(default=300, gt=0, allow_inf_nan=False)  # how long to wait for sites
    round_timeout_s: float = Field(default=3600, gt=0, allow_inf_nan=False)  # a later reply does not count
    synthetic: bool = False  # true if the sites are phantoms; the release will say so

    @property
    def asked_a_round(self) -> int:
        """How many sites a round asks when all expected sites are connected."""
        return min(self.sites_per_round or self.sites, self.sites)


class StrategyTable(BaseModel, extra="forbid"):
    """[strategy]: the name of a strategy and its options; see `federation.strategy.flower_strategies`.

    `name` may be "package:name", with the SHA-256 of the package's files (`federation.strategy.own_strategy`).
    """

    name: str = "CenteredClip"
    code: str = Field(default="", pattern=CODE)
    options: dict[str, float] = {}

    @property
    def own(self) -> Named | None:
        """The package's strategy, if the strategy is one."""
        return Named("strategy", self.name, self.code) if self.code else None

    @model_validator(mode="after")
    def strategy_of_a_package_has_a_code(self) -> Self:
        if ":" in self.name and not re.fullmatch(NAME, self.name):
            raise ValueError("a strategy of a package is named package:name")
        if bool(self.code) != (":" in self.name):
            raise ValueError("a package's strategy has name and code, as `fedthorax study network` prints them")
        return self

    @model_serializer(mode="wrap")
    def code_is_written_only_if_there_is_one(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out no code, so that the digests of other studies stay as they were."""
        content: dict[str, Any] = write(self)
        if not self.code:
            content.pop("code", None)
        return content


class WireTable(BaseModel, extra="forbid"):
    """[wire]: the precision in which weights are sent."""

    precision: Literal["float32", "float16"] = (
        "float32"  # float16: half the bytes; see `federation.protocol.half_precision`
    )


class AggregationTable(BaseModel, extra="forbid"):
    """[aggregation]: whether the server sees each site's update and answers, only their sum, or only sums of groups."""

    secure: bool = False  # masked rounds and answers; see docs/secure-aggregation.md
    groups: int = Field(default=0, ge=0, le=MAX_GROUPS)  # a median over so many sums of groups; 0: one sum of all
    summed_answers: bool = False  # figures and answers leave a site only in sums, as `secure` has it anyway

    @model_serializer(mode="wrap")
    def summed_answers_are_written_where_they_matter(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `summed_answers` if false or implied, so that the digests of other studies stay as they were."""
        content: dict[str, Any] = write(self)
        if self.secure or not self.summed_answers:
            content.pop("summed_answers", None)
        return content


class ComputeNeed(BaseModel, extra="forbid"):
    """[compute]: what every site's processor must offer. Each site chooses its own processor in its site.toml."""

    device: Literal["any", "cuda"] = "any"  # cuda: a GPU, because a round would take too long on a CPU
    precision: Literal["any", "fp32"] = "any"  # fp32: no site trains in 16 bits
    gpu_memory_gb: float = Field(default=0, ge=0, le=1000)  # of a GPU, if the site computes with one

    def unmet_by(self, compute: "Compute") -> str:
        """Return the first need that a processor does not meet, in words; "" if it meets all."""
        if self.device == "cuda" and compute.device.type != "cuda":
            return "a GPU"
        if self.precision == "fp32" and compute.dtype is not None:
            return "fp32"
        if compute.device.type == "cuda" and compute.memory_gb() < self.gpu_memory_gb:
            return f"a GPU with {self.gpu_memory_gb:g} GB"
        return ""


class StoppingTable(BaseModel, extra="forbid"):
    """[stopping]: end early when the sites' mean validation figure no longer rises."""

    figure: Literal["auroc_severe", "auroc_pcr_positive"] = "auroc_severe"
    patience_rounds: int = Field(ge=1, le=1000)  # rounds without a rise of `least_gain`
    least_gain: float = Field(default=0.005, ge=0, le=1)


class EvaluationTable(BaseModel, extra="forbid"):
    """[evaluation]: what the report at the end of a run compares the federated model with."""

    local_models: bool = False  # each site trained alone for as many rounds: doubles the training
    leave_one_out: bool = False  # one federation without each site: as many trainings as there are sites
    pooled: bool = False  # all patients in one place: only in a simulation, where one machine holds them
    fine_tune: bool = False  # the final model's head, fitted again to each site
    compared_sites: int = Field(default=0, ge=0)  # single sites to compare, drawn by the seed; 0: all
    shortcut_audit: bool = True  # can the embedding predict the site, and tags alone the label?


class Study(BaseModel, extra="forbid"):
    """The settings of one federated training, the content of study.toml.

    configs/study.toml explains each line. Read a file with `load_settings(path, Study)`, a dict with
    `Study.model_validate(content)`; pydantic's ValidationError names what does not fit.

    Parameters
    ----------
    study : StudyTable
        How long, with which sites, under which conditions.
    strategy : StrategyTable
        The strategy that aggregates replies, and its options.
    network : StudyNetwork
        The network's architecture.
    preprocessing : Preprocessing
        The settings of `prepare`, the same at every site.
    training : StudyTraining
        Optimiser settings of the local training.
    wire : WireTable
        How weights travel.
    aggregation : AggregationTable
        Whether the server sees only the sum of the updates.
    privacy : PrivacySettings or None
        Differential privacy; None for none.
    compute : ComputeNeed
        What every site's processor must offer.
    stopping : StoppingTable or None
        Early stopping; None for none.
    evaluation : EvaluationTable
        What the federated model is compared with at the end.
    """

    study: StudyTable
    strategy: StrategyTable = StrategyTable()
    network: StudyNetwork = StudyNetwork()
    preprocessing: Preprocessing = Preprocessing()
    training: StudyTraining = StudyTraining()
    wire: WireTable = WireTable()
    aggregation: AggregationTable = AggregationTable()
    privacy: PrivacySettings | None = None
    compute: ComputeNeed = ComputeNeed()
    stopping: StoppingTable | None = None
    evaluation: EvaluationTable = EvaluationTable()

    @model_serializer(mode="wrap")
    def needs_are_written_only_if_there_are_any(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out [compute] at its defaults, so that the digests of studies without needs stay as they were."""
        content: dict[str, Any] = write(self)
        if self.compute == ComputeNeed():
            content.pop("compute", None)
        return content

    @model_validator(mode="after")
    def quorum_can_be_met(self) -> Self:
        if self.study.sites_per_round > self.study.sites:
            raise ValueError("sites_per_round is larger than the number of sites")
        if self.study.quorum > self.study.asked_a_round:
            raise ValueError("quorum is larger than the number of sites that a round asks")
        return self

    @model_validator(mode="after")
    def a_patient_has_a_gradient(self) -> Self:
        if self.privacy is not None and self.network.norm != "group":
            raise ValueError('[privacy] needs norm = "group" in [network]: batch norm mixes the patients of a batch')
        return self

    @model_validator(mode="after")
    def features_of_an_encoder_do_not_vary(self) -> Self:
        if self.network.encoder and (self.training.augment or self.training.transform):
            raise ValueError(
                "the features of an encoder are computed once a scan: set augment = false in [training], no transform"
            )
        return self

    @model_validator(mode="after")
    def pretraining_learns_no_label(self) -> Self:
        if not self.network.pretrains:
            return self
        asked = self.evaluation
        if asked.local_models or asked.leave_one_out or asked.pooled or asked.fine_tune:
            raise ValueError(
                "a pretraining has nothing to evaluate: remove local_models, leave_one_out, pooled and fine_tune"
            )
        if self.privacy is not None:
            raise ValueError(
                f'[privacy] does not count patients without labels: remove it, or outputs = "{self.network.outputs}" '
                "in [network]"
            )
        if self.stopping is not None:
            raise ValueError("a pretraining has no validation figure: remove [stopping]")
        if self.aggregation.secure:
            raise ValueError(
                "a pretraining cannot mask its updates: they are so small that hospitals refuse the sum as too sparse. "
                "Set secure = false; summed_answers = true sums its loss"
            )
        if self.training.learning_rate > PRETRAINING_RATE:
            raise ValueError(
                f"a pretraining needs learning_rate = {PRETRAINING_RATE} or less in [training]: with more, an honest "
                "round moves the weights further than gateways allow"
            )
        if self.training.own_loss or self.training.own_transform:
            raise ValueError("a pretraining has its own loss and targets: remove loss and transform of a package")
        return self

    @model_validator(mode="after")
    def a_package_has_one_code(self) -> Self:
        codes: dict[str, str] = {}
        for part in self.own_parts:
            package = part.name.partition(":")[0]
            if codes.setdefault(package, part.code) != part.code:
                raise ValueError(f"the package {package} is named with two codes: use one version of it")
        return self

    @model_validator(mode="after")
    def private_rounds_are_for_one_model(self) -> Self:
        asked = self.evaluation
        extra = asked.local_models or asked.leave_one_out or asked.pooled or asked.fine_tune
        if self.privacy is not None and extra:
            raise ValueError("[privacy] covers one model: remove local_models, leave_one_out, pooled and fine_tune")
        if self.privacy is not None and self.study.local_steps:
            raise ValueError("[privacy] counts epochs: remove local_steps")
        return self

    @model_validator(mode="after")
    def what_a_release_learnt_before_is_not_counted_again(self) -> Self:
        asked = self.evaluation
        if not self.study.begin_from:
            return self
        if self.network.is_own:
            raise ValueError("a study with a network of a package starts from its seed: remove begin_from")
        if self.privacy is not None:
            raise ValueError("[privacy] does not count what a release learnt before this study: remove begin_from")
        if asked.local_models or asked.leave_one_out or asked.pooled:
            raise ValueError(
                "a study with begin_from allows no local_models, leave_one_out or pooled: these models start from the "
                "seed, and the release may have learnt from the site that is left out"
            )
        return self

    @model_validator(mode="after")
    def a_median_needs_groups_that_are_sums(self) -> Self:
        groups = self.aggregation.groups
        if not groups:
            return self
        if not self.aggregation.secure:
            raise ValueError("groups needs secure = true: without masks, a robust strategy compares single updates")
        if groups % 2 == 0 or groups == 1:
            raise ValueError("groups must be 0 or an odd number of at least 3: a median needs a majority")
        if self.study.sites < LEAST_SECURE_SITES * groups:
            raise ValueError(f"groups = {groups} needs at least {LEAST_SECURE_SITES * groups} sites, three in each")
        return self

    @model_validator(mode="after")
    def a_sum_hides_single_sites(self) -> Self:
        if not self.sums_answers:
            return self
        what = "secure = true" if self.aggregation.secure else "summed_answers = true"
        if self.study.sites < LEAST_SECURE_SITES:
            raise ValueError(f"{what} needs at least {LEAST_SECURE_SITES} sites")
        if self.study.sites > MAX_PEERS:
            raise ValueError(f"{what} allows at most {MAX_PEERS} sites")
        if single := self.single_models:
            raise ValueError(f"{what} allows no {', '.join(single)}: these models reveal single sites' updates")
        return self

    @model_validator(mode="after")
    def a_sum_is_all_that_the_strategy_needs(self) -> Self:
        if not self.aggregation.secure:
            return self
        if self.strategy.name not in MEAN_STRATEGIES:
            raise ValueError(
                f"secure = true shows the server only a sum, and {self.strategy.name} compares single updates: "
                f"choose one of {', '.join(MEAN_STRATEGIES)}"
            )
        if self.study.quorum < LEAST_SECURE_SITES:
            raise ValueError(f"secure = true needs a quorum of at least {LEAST_SECURE_SITES}")
        if self.study.sites_per_round:
            raise ValueError("secure = true allows no sites_per_round: sums that differ by a site reveal its update")
        if self.wire.precision != "float32":
            raise ValueError('secure = true needs precision = "float32" in [wire]: masked numbers have 32 bits')
        if self.study.rounds < LEAST_SECURE_ROUNDS:
            raise ValueError("secure = true needs at least 2 rounds: the last one only judges the model")
        return self

    def with_seed(self, seed: int) -> "Study":
        """Return the study of one run, with this seed."""
        return self.model_copy(update={"study": self.study.model_copy(update={"seed": seed, "seeds": ()})})

    @property
    def own_parts(self) -> list[Named]:
        """What the study uses of packages: network, loss, transform, strategy."""
        network = Named("network", self.network.architecture, self.network.code) if self.network.is_own else None
        parts = (network, self.training.own_loss, self.training.own_transform, self.strategy.own)
        return [part for part in parts if part is not None]

    @property
    def sums_answers(self) -> bool:
        """Whether figures of rounds and answers to questions leave a site only as part of a sum."""
        return self.aggregation.secure or self.aggregation.summed_answers

    @property
    def compared(self) -> int:
        """The number of single sites with which [evaluation] compares the federated model."""
        return min(self.evaluation.compared_sites or self.study.sites, self.study.sites)

    @property
    def audits(self) -> bool:
        """Whether sites answer the shortcut audit; its figures use training patients, which no noise would cover."""
        return self.evaluation.shortcut_audit and self.privacy is None and not self.network.pretrains

    @property
    def single_models(self) -> list[str]:
        """The settings of [evaluation] that ask for models of single sites, or for models without a single site."""
        return [name for name in ("local_models", "leave_one_out", "fine_tune") if getattr(self.evaluation, name)]

    @property
    def could_mask(self) -> bool:
        """Whether the study has no masks, and could have them with a larger quorum and one more round."""
        table = self.study
        return (
            not self.aggregation.secure
            and not self.network.pretrains
            and self.strategy.name in MEAN_STRATEGIES
            and LEAST_SECURE_SITES <= table.sites <= MAX_PEERS
            and not (table.sites_per_round or self.single_models)
            and self.wire.precision == "float32"
        )

    @property
    def proximal_mu(self) -> float:
        """How strongly FedProx keeps a site's weights near the global ones; 0 with any other strategy."""
        return self.strategy.options.get("proximal_mu", 0.0)

    @property
    def epochs_a_round(self) -> int:
        """Local epochs of a round; if a round is counted in steps, these are one epoch."""
        return 1 if self.study.local_steps else self.study.local_epochs

    @property
    def total_epochs(self) -> int:
        """Local epochs over all rounds, over which the learning rate decreases."""
        return self.study.rounds * self.epochs_a_round

    def kept_epochs(self, rounds: int) -> int:
        """Local epochs of so many rounds whose steps are in the final model; baselines are trained for the same number.

        The last round of a masked study only judges the model.
        """
        return (rounds - self.aggregation.secure) * self.epochs_a_round

    @property
    def private_round(self) -> PrivateRound | None:
        """What a round costs of each site's privacy budget; None if the study has no [privacy]."""
        if self.privacy is None:
            return None
        return PrivateRound(
            noise_multiplier=self.privacy.noise_multiplier,
            sample_rate=self.privacy.sample_rate,
            steps=self.study.local_epochs * self.privacy.steps_an_epoch,
            delta=self.privacy.delta,
        )

    def schedule(self, round_number: int) -> Schedule:
        """Return the part of the training schedule that belongs to a round (1, 2, ...)."""
        epochs = self.epochs_a_round
        first = (round_number - 1) * epochs
        return Schedule(first, epochs, self.total_epochs, steps=self.study.local_steps)


def preprocessing_of(study_file: Path | None) -> Preprocessing:
    """Return the preprocessing in a study file; the default without a file."""
    return Preprocessing() if study_file is None else load_settings(study_file, Study).preprocessing
