"""The networks: a MONAI backbone, 3D or slice by slice, age and sex joined late, one logit per label."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from models.import_lean import import_lean

LABELS: tuple[Literal["pcr_positive"], Literal["severe"]] = ("pcr_positive", "severe")
CHANNELS = 2  # lung window, lung mask
TABULAR = 4  # see `tabular`
AGE_SCALE_YEARS = 20.0
HEAD_RMS = 0.4  # of a label's weights on fixed features of age and sex, at most
_BLOCKS = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2], "resnet18_slices": [2, 2, 2, 2]}


class NetworkSettings(BaseModel):
    """What is needed to build the network again; part of every release.

    `architecture`: MONAI's 3D ResNets, or with "_slices" the 2D one on each slice (`models.slicewise`).
    `age_band_years`: the network sees the middle of a band of so many years in place of the age. Releases made before
    this setting existed were trained on exact ages (0). `tabular`: whether the features of age and sex are learnt, or
    the same fixed ones in every network (`_fix_features`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["resnet10", "resnet18", "resnet18_slices"] = "resnet18"
    widen_factor: float = Field(default=0.25, ge=1 / 16, le=2)
    tabular_features: int = Field(default=8, ge=1, le=256)
    norm: Literal["batch", "group"] = "batch"  # group: for training with differential privacy
    age_band_years: Literal[0, 5] = 0
    tabular: Literal["learnt", "fixed"] = "learnt"

    @property
    def is_slicewise(self) -> bool:
        """2.5D: the backbone reads slice by slice."""
        return self.architecture.endswith("_slices")


def tabular(age_years: float | None, sex: str | None) -> list[float]:
    """Age and sex as four numbers: scaled age, age known, sex (female -1, male 1), sex known; 0 where missing."""
    return [
        0.0 if age_years is None else (age_years - 60.0) / AGE_SCALE_YEARS,
        0.0 if age_years is None else 1.0,
        {"F": -1.0, "M": 1.0}.get(sex or "", 0.0),
        1.0 if sex in {"F", "M"} else 0.0,
    ]


def banded(tabular: Tensor, band_years: int) -> Tensor:
    """`tabular` (batch, 4) with each known age replaced by the middle of its band of `band_years` years; 0: unchanged.

    With exact ages, a unit whose threshold lies between two ages can single out one patient.
    """
    if not band_years:
        return tabular
    width = band_years / AGE_SCALE_YEARS
    middle = (torch.floor(tabular[:, 0] / width) + 0.5) * width
    age = torch.where(tabular[:, 1] > 0, middle, tabular[:, 0])
    return torch.cat([age[:, None], tabular[:, 1:]], dim=1)


# Each row makes one feature: weights of age, age known, sex, sex known.
_DIRECTIONS = (
    (1, 0, 0, 0),
    (-1, 0, 0, 0),
    (0, 0, 1, 0),
    (0, 0, -1, 0),
    (1, 0, 1, 0),
    (-1, 0, 1, 0),
    (1, 0, -1, 0),
    (-1, 0, -1, 0),
)
_OFFSETS = (0.5, 1.5)  # added to each feature: with the first, its threshold lies 10 years from the age of 60


def _fix_features(layer: nn.Linear) -> None:
    """Give the layer of age and sex its fixed weights: hinges on age and sex, each active for many patients.

    A layer that is learnt tells by its gradient, threshold by threshold, how many patients of which age and sex have
    the label; one that was drawn from a seed could be chosen so that a threshold singles out one patient. Fixed
    features leave only the head to be learnt, over groups that nobody chooses.
    """
    with torch.no_grad():
        for place in range(layer.out_features):
            layer.weight[place] = torch.tensor(_DIRECTIONS[place % len(_DIRECTIONS)], dtype=torch.float32)
            layer.bias[place] = _OFFSETS[place // len(_DIRECTIONS)]
    layer.requires_grad_(False)


class SeverityNetwork(nn.Module):
    """Scan and tabular data to two logits, in the order of LABELS."""

    def __init__(self, settings: NetworkSettings) -> None:
        # Imported here because it takes a second, and the workers that ingest scans need no network.
        import_lean("monai")
        from monai.networks.nets.resnet import ResNet, get_inplanes

        from models.blocks import OutOfPlaceBlock, replace_batch_norm
        from models.slicewise import SlicesBackbone

        super().__init__()
        grouped = settings.norm == "group"
        resnet = ResNet(
            block=OutOfPlaceBlock if grouped else "basic",
            layers=_BLOCKS[settings.architecture],
            block_inplanes=get_inplanes(),
            spatial_dims=2 if settings.is_slicewise else 3,
            n_input_channels=CHANNELS,
            conv1_t_size=5,
            conv1_t_stride=2,  # MONAI's default of 1 costs some ten times as much
            shortcut_type="B",
            widen_factor=settings.widen_factor,
            feed_forward=False,
            act=("relu", {"inplace": not grouped}),
        )
        if grouped:
            replace_batch_norm(resnet)
        self.features = int(get_inplanes()[-1] * settings.widen_factor)  # that the backbone makes of a scan
        self.backbone = SlicesBackbone(resnet, self.features) if settings.is_slicewise else resnet
        self.age_band_years = settings.age_band_years
        self.fixed = settings.tabular == "fixed"
        layer = nn.Linear(TABULAR, settings.tabular_features)
        if settings.tabular == "fixed":
            _fix_features(layer)
        self.tabular = nn.Sequential(layer, nn.ReLU())
        self.head = nn.Linear(self.features + settings.tabular_features, len(LABELS))
        channels_last = torch.channels_last if settings.is_slicewise else torch.channels_last_3d
        self.to(memory_format=channels_last)  # type: ignore[call-overload]  # a fifth faster on CPUs

    def forward(self, scan: Tensor, tabular: Tensor) -> Tensor:
        """`scan` (batch, 2, slices, rows, columns) and `tabular` (batch, 4) to logits (batch, 2), float32."""
        return self.head(self.joined(scan, tabular)).float()

    @torch.no_grad()
    def hold_short(self) -> None:
        """Shorten each label's weights on fixed features of age and sex to HEAD_RMS, after a training step.

        A max-norm constraint (Srebro & Shraibman, COLT 2005). Without it a model with large weights there, which then
        looks like any other, would make an update a count of patients by age and sex. Learnt features have no bound.
        """
        if self.fixed:
            weights = self.head.weight[:, self.features :]
            rms = weights.square().mean(dim=1, keepdim=True).sqrt()
            weights.mul_((HEAD_RMS / rms.clamp(min=1e-12)).clamp(max=1.0))

    def joined(self, scan: Tensor, tabular: Tensor) -> Tensor:
        """What the head sees: the scan's features, then those of age and sex, shape (batch, features)."""
        scan = scan.contiguous(memory_format=torch.channels_last_3d)
        return torch.cat([self.backbone(scan), self.tabular(banded(tabular, self.age_band_years))], dim=1)


def build_network(settings: NetworkSettings, *, seed: int) -> SeverityNetwork:
    """A network with weights drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SeverityNetwork(settings)
