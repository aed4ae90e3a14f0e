"""A study: study.toml in one model, sent as JSON to the server's app and to every site's."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator

from models.network import NetworkSettings
from models.settings import load_settings
from pipeline.preprocess import Preprocessing
from pipeline.privacy_budget import PrivacySettings, PrivateRound
from pipeline.train import Schedule, TrainSettings


class StudyTable(BaseModel, extra="forbid"):
    """[study]: how long, with whom, under which conditions."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    rounds: int = Field(ge=1, le=1000)
    local_epochs: int = Field(default=2, ge=1, le=50)
    seed: int = 1
    sites: int = Field(ge=1)  # how many are waited for before round 1
    quorum: int = Field(ge=1)  # fewer valid replies, and a round is lost
    wait_s: float = Field(default=300, gt=0)  # how long to wait for sites
    round_timeout_s: float = Field(default=3600, gt=0)  # a slower reply is missed
    synthetic: bool = False  # true where the sites are phantoms; the release will say so


class StrategyTable(BaseModel, extra="forbid"):
    """[strategy]: one of Flower's strategies by name, with its own options."""

    name: str = "FedAvg"
    options: dict[str, float] = {}


class Study(BaseModel, extra="forbid"):
    """study.toml; configs/study.toml explains each line."""

    study: StudyTable
    strategy: StrategyTable = StrategyTable()
    network: NetworkSettings = NetworkSettings()
    preprocessing: Preprocessing = Preprocessing()
    training: TrainSettings = TrainSettings()
    privacy: PrivacySettings | None = None

    @model_validator(mode="after")
    def quorum_can_be_met(self) -> Self:
        if self.study.quorum > self.study.sites:
            raise ValueError("quorum is larger than the number of sites")
        return self

    @model_validator(mode="after")
    def a_patient_has_a_gradient(self) -> Self:
        if self.privacy is not None and self.network.norm != "group":
            raise ValueError('[privacy] needs norm = "group" in [network]: batch norm mixes the patients of a batch')
        return self

    @property
    def proximal_mu(self) -> float:
        """How strongly FedProx holds a site's weights near the global ones; 0 with any other strategy."""
        return self.strategy.options.get("proximal_mu", 0.0)

    @property
    def total_epochs(self) -> int:
        """Local epochs over all rounds; baselines are trained for as many."""
        return self.study.rounds * self.study.local_epochs

    @property
    def private_round(self) -> PrivateRound | None:
        """What a round costs each site of its privacy budget; None where the study has no [privacy]."""
        if self.privacy is None:
            return None
        return PrivateRound(
            noise_multiplier=self.privacy.noise_multiplier,
            sample_rate=self.privacy.sample_rate,
            steps=self.study.local_epochs * self.privacy.steps_an_epoch,
            delta=self.privacy.delta,
        )

    def schedule(self, round_number: int) -> Schedule:
        """The stretch of training that belongs to a round (1, 2, ...)."""
        epochs = self.study.local_epochs
        return Schedule(first_epoch=(round_number - 1) * epochs, epochs=epochs, total_epochs=self.total_epochs)


def preprocessing_of(study_file: Path | None) -> Preprocessing:
    """The preprocessing that a study file asks for; the default without one."""
    return Preprocessing() if study_file is None else load_settings(study_file, Study).preprocessing
