"""The settings that define a network, and what its inputs and outputs are. Works without torch.

`models.network` builds the network.
"""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

from models.encoder_layers import STAGES, ResNetLayers, encoded_name, has_batch_norm, has_stages
from models.own_packages import CODE, NAME

Architecture = Literal[
    "resnet10", "resnet18", "resnet18_slices", "densenet121", "seresnet50", "efficientnet_b0_slices", "convnext"
]
LABELS: tuple[Literal["pcr_positive"], Literal["severe"]] = ("pcr_positive", "severe")
# What a network estimates in pretraining, from the scan alone (`pipeline.training.pretraining`).
AUXILIARY = (
    *(f"opacity_{side}_{third}" for side in ("right", "left") for third in ("lower", "middle", "upper")),
    "volume_right",
    "volume_left",
    "mean_hu",
)
# What it estimates in pretraining on hidden blocks at each place of its last maps: the densities of the eight blocks of
# the scan's part that belongs to the place (`pipeline.training.hidden_blocks`).
BLOCKS = tuple(
    f"density_{height}_{depth}_{side}"
    for height in ("lower", "upper")
    for depth in ("front", "back")
    for side in ("right", "left")
)
WITH_MAPS = ("resnet10", "resnet18", "densenet121", "seresnet50", "convnext")  # can be pretrained so
CHANNELS = 2  # lung window, lung mask
TABULAR = 4  # see `tabular`
AGE_SCALE_YEARS = 20.0
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)


class NetworkSettings(BaseModel):
    """The settings that define the network; part of every release.

    `architecture`: MONAI's 3D networks, or with "_slices" a 2D network on each slice (`models.backbones`). `pooling`:
    how the features of places or slices become those of the scan (`models.pooling`); "": the architecture's usual way,
    a mean over places, or gated attention over slices.

    `architecture` may also be "package:name", a network of one's own (`models.own_packages`); `code` is then the
    SHA-256 of the package's files, and `widen_factor` does not apply.
    `age_band_years`: the network receives the middle of an age band of this width instead of the age. Releases without
    this setting were trained on exact ages (0). `tabular`: whether the features of age and sex are learnt, or the same
    fixed ones in every network (`_fix_features`).

    `encoder`: name of a frozen encoder in place of the architecture (`models.encoders`), whose `encoder_features` are
    the input of the head. Only the head is then trained and sent. `tuned_stages`: so many of the encoder's last stages
    are trained and sent too; `encoder_layers` are then the encoder's layers, as its card has them.

    `outputs`: "labels"; for a network that is only pretrained "auxiliary" (measures of the scan) or "hidden_blocks"
    (densities of hidden blocks). The head and what is learnt follow from this one setting, so that no network with
    outputs for labels can be trained as a pretraining, and the reverse.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture | Annotated[str, StringConstraints(pattern=NAME)] = "resnet18"
    code: str = Field(default="", pattern=CODE)
    pooling: Literal["", "mean", "attention", "gated"] = ""
    widen_factor: float = Field(default=0.25, ge=1 / 16, le=2)
    tabular_features: int = Field(default=8, ge=1, le=256)
    norm: Literal["batch", "group"] = "batch"  # group: for training with differential privacy
    age_band_years: Literal[0, 5] = 0
    tabular: Literal["learnt", "fixed"] = "learnt"
    encoder: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    encoder_features: int = Field(default=0, ge=0, le=4096)
    tuned_stages: int = Field(default=0, ge=0, le=STAGES)
    encoder_layers: "ResNetLayers | NetworkSettings | None" = None
    outputs: Literal["labels", "auxiliary", "hidden_blocks"] = "labels"

    @property
    def pretrains(self) -> bool:
        """Whether the network learns from the scans alone instead of from the labels."""
        return self.outputs != "labels"

    @property
    def hides_blocks(self) -> bool:
        """Whether the head estimates hidden blocks at each place of the last maps, which are not pooled."""
        return self.outputs == "hidden_blocks"

    @property
    def output_names(self) -> tuple[str, ...]:
        """What each output of the head is; of a pretraining on hidden blocks, at each place."""
        return {"labels": LABELS, "auxiliary": AUXILIARY, "hidden_blocks": BLOCKS}[self.outputs]

    @property
    def is_slicewise(self) -> bool:
        """Whether the backbone is 2.5D and reads slice by slice."""
        return not self.is_own and self.architecture.endswith("_slices")

    @property
    def is_own(self) -> bool:
        """Whether the network is code of a package."""
        return ":" in self.architecture

    @property
    def has_attention(self) -> bool:
        """Whether attention, not a mean, pools the features of places or slices."""
        return self.pooling in ("attention", "gated") or (self.is_slicewise and not self.pooling)

    @model_validator(mode="after")
    def slices_have_attention(self) -> Self:
        if self.is_slicewise and self.pooling == "mean":
            raise ValueError(f'{self.architecture} weights its slices: pooling must be "attention" or "gated"')
        return self

    @model_validator(mode="after")
    def code_is_named_exactly_if_it_is_a_packages(self) -> Self:
        if self.is_own and not self.code:
            raise ValueError(f"{self.architecture} needs code: `fedthorax study network {self.architecture}` prints it")
        if self.code and not self.is_own:
            raise ValueError("code belongs to a network of a package")
        if self.is_own and self._is_chosen("widen_factor"):
            raise ValueError("widen_factor does not apply to a network of a package: remove it")
        return self

    @model_validator(mode="after")
    def an_encoder_is_the_whole_backbone(self) -> Self:
        if bool(self.encoder) != bool(self.encoder_features):
            raise ValueError("encoder and encoder_features belong together: `fedthorax study encoder` prints them")
        chosen = [key for key in ("architecture", "code", "pooling", "widen_factor") if self._is_chosen(key)]
        if self.encoder and chosen:
            raise ValueError(f"an encoder takes the place of the architecture: remove {', '.join(chosen)}")
        return self

    @model_validator(mode="after")
    def pretraining_is_of_own_encoders(self) -> Self:
        if self.pretrains and (self.is_own or self.encoder):
            raise ValueError(f'outputs = "{self.outputs}" pretrains a network of this release: remove code and encoder')
        return self

    @model_validator(mode="after")
    def hidden_blocks_are_estimated_from_maps(self) -> Self:
        if not self.hides_blocks:
            return self
        if self.architecture not in WITH_MAPS:
            raise ValueError(
                f'outputs = "hidden_blocks" needs 3D maps, which {self.architecture} does not have: use one of '
                f'{", ".join(WITH_MAPS)}, or outputs = "auxiliary"'
            )
        if self.has_attention:
            raise ValueError(
                'outputs = "hidden_blocks" does not pool, so it cannot train the attention of a pooling: remove '
                'pooling, or use outputs = "auxiliary"'
            )
        return self

    @model_validator(mode="after")
    def tuned_stages_are_those_of_known_layers(self) -> Self:
        layers = self.encoder_layers
        if self.tuned_stages and not self.encoder:
            raise ValueError("tuned_stages are those of an encoder: name one")
        if bool(self.tuned_stages) != (layers is not None):
            raise ValueError("tuned_stages and encoder_layers belong together: `fedthorax study encoder` prints them")
        if layers is None:
            return self
        if isinstance(layers, NetworkSettings) and layers.encoder:
            raise ValueError("encoder_layers are layers, not another encoder")
        if not has_stages(layers):
            raise ValueError("the layers of this encoder cannot be divided into stages: set tuned_stages = 0")
        if self.norm == "group" and has_batch_norm(layers):
            raise ValueError(
                'the encoder\'s stages have batch norm, which norm = "group" excludes: tune an encoder with group norm '
                "or set tuned_stages = 0"
            )
        return self

    @property
    def encoded(self) -> str:
        """The name under which a site keeps what the frozen layers make of its scans; "" without an encoder."""
        return encoded_name(self.encoder, self.tuned_stages)

    def _is_chosen(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    @model_serializer(mode="wrap")
    def later_settings_are_written_only_if_chosen(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the usual pooling, no code, no encoder, and labels as outputs.

        So releases and digests of studies stay as they were.
        """
        content: dict[str, Any] = write(self)
        if not self.pretrains:
            content.pop("outputs", None)
        for key in ("pooling", "code", "encoder", "encoder_features", "tuned_stages", "encoder_layers"):
            if not getattr(self, key):
                content.pop(key, None)
        return content


def tabular(age_years: float | None, sex: str | None) -> list[float]:
    """Encode age and sex as four numbers: scaled age, age known, sex (female -1, male 1), sex known; 0 if missing."""
    return [
        0.0 if age_years is None else (age_years - 60.0) / AGE_SCALE_YEARS,
        0.0 if age_years is None else 1.0,
        {"F": -1.0, "M": 1.0}.get(sex or "", 0.0),
        1.0 if sex in {"F", "M"} else 0.0,
    ]
