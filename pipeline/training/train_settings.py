"""The settings of training, and where a round stands within the whole training. Works without torch."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from models.own_packages import CODE, NAME, OPTION, Named

Settings = Annotated[
    dict[Annotated[str, StringConstraints(pattern=OPTION)], Annotated[float, Field(allow_inf_nan=False)]],
    Field(max_length=20),
]

_Losses = Literal["cross_entropy", "cross_entropy_by_patient"]


class TrainSettings(BaseModel):
    """Settings of training; baselines and federation use the same values.

    `loss` and `transform` may be "package:name", with `loss_code` and `transform_code`, the SHA-256 of the package's
    files (`models.own_packages`). A transform follows the augmentation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=8, ge=2)  # batch norm needs two
    learning_rate: float = Field(default=0.05, gt=0, le=10)
    momentum: float = Field(default=0.9, gt=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0, le=1)
    augment: bool = True
    vary_appearance: bool = False  # augmentation also varies densities, sharpness and noise, as between scanners

    loss: _Losses | Annotated[str, StringConstraints(pattern=NAME)] = "cross_entropy"
    loss_code: str = Field(default="", pattern=CODE)
    loss_settings: Settings = {}
    transform: Literal[""] | Annotated[str, StringConstraints(pattern=NAME)] = ""
    transform_code: str = Field(default="", pattern=CODE)
    transform_settings: Settings = {}

    @property
    def own_loss(self) -> Named | None:
        """The package's loss, if the loss is one."""
        return Named("loss", self.loss, self.loss_code) if self.loss_code else None

    @property
    def own_transform(self) -> Named | None:
        """The package's transform, if there is one."""
        return Named("transform", self.transform, self.transform_code) if self.transform_code else None

    @model_validator(mode="after")
    def parts_of_packages_have_a_code(self) -> Self:
        for kind, name, code, settings in (
            ("loss", self.loss, self.loss_code, self.loss_settings),
            ("transform", self.transform, self.transform_code, self.transform_settings),
        ):
            if ":" in name and not code:
                raise ValueError(f"{name} needs {kind}_code: `fedthorax study network {name}` prints it")
            if ":" not in name and (code or settings):
                raise ValueError(f"{kind}_code and {kind}_settings belong to a {kind} of a package")
        return self

    @model_serializer(mode="wrap")
    def parts_of_packages_are_written_only_if_chosen(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the usual loss and no transform, so that the digests of other studies stay as they were."""
        content: dict[str, Any] = write(self)
        usual = {name: field.default for name, field in TrainSettings.model_fields.items()}
        own = ("loss", "loss_code", "loss_settings", "transform", "transform_code", "transform_settings")
        return {key: value for key, value in content.items() if key not in own or value != usual[key]}

    @model_validator(mode="after")
    def appearance_is_part_of_augmentation(self) -> Self:
        if self.vary_appearance and not self.augment:
            raise ValueError("vary_appearance needs augment = true")
        return self


@dataclass(frozen=True)
class Schedule:
    """The position of some epochs within the whole training: the learning rate follows a cosine over all epochs.

    With `steps`, an epoch is this number of batches, regardless of the number of patients; else one pass over them.
    """

    first_epoch: int
    epochs: int
    total_epochs: int
    steps: int = 0

    def learning_rate(self, peak: float, epoch: int, progress: float) -> float:
        """Return the rate at `progress` (0 to 1) of the given epoch of this schedule; the first epoch warms up."""
        done = self.first_epoch + epoch + progress
        warm = min(1.0, 0.1 + 0.9 * done)
        return peak * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done / self.total_epochs)))
