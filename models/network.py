"""The networks: a MONAI 3D backbone, age and sex joined late, one logit per label."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

LABELS: tuple[Literal["pcr_positive"], Literal["severe"]] = ("pcr_positive", "severe")
CHANNELS = 2  # lung window, lung mask
TABULAR = 4  # see `tabular`
_BLOCKS = {"resnet10": [1, 1, 1, 1], "resnet18": [2, 2, 2, 2]}


class NetworkSettings(BaseModel):
    """What is needed to build the network again; part of every release."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["resnet10", "resnet18"] = "resnet18"
    widen_factor: float = Field(default=0.25, ge=1 / 16, le=2)
    tabular_features: int = Field(default=8, ge=1, le=256)
    norm: Literal["batch", "group"] = "batch"  # group: for training with differential privacy


def tabular(age_years: float | None, sex: str | None) -> list[float]:
    """Age and sex as four numbers: scaled age, age known, sex (female -1, male 1), sex known; 0 where missing."""
    return [
        0.0 if age_years is None else (age_years - 60.0) / 20.0,
        0.0 if age_years is None else 1.0,
        {"F": -1.0, "M": 1.0}.get(sex or "", 0.0),
        1.0 if sex in {"F", "M"} else 0.0,
    ]


class SeverityNetwork(nn.Module):
    """Scan and tabular data to two logits, in the order of LABELS."""

    def __init__(self, settings: NetworkSettings) -> None:
        # Imported here because it takes seconds, and the workers that ingest scans need no network.
        from monai.networks.nets.resnet import ResNet, get_inplanes

        from models.blocks import OutOfPlaceBlock, replace_batch_norm

        super().__init__()
        grouped = settings.norm == "group"
        self.backbone = ResNet(
            block=OutOfPlaceBlock if grouped else "basic",
            layers=_BLOCKS[settings.architecture],
            block_inplanes=get_inplanes(),
            spatial_dims=3,
            n_input_channels=CHANNELS,
            conv1_t_size=5,
            conv1_t_stride=2,  # MONAI's default of 1 costs some ten times as much
            shortcut_type="B",
            widen_factor=settings.widen_factor,
            feed_forward=False,
            act=("relu", {"inplace": not grouped}),
        )
        if grouped:
            replace_batch_norm(self.backbone)
        features = int(get_inplanes()[-1] * settings.widen_factor)
        self.tabular = nn.Sequential(nn.Linear(TABULAR, settings.tabular_features), nn.ReLU())
        self.head = nn.Linear(features + settings.tabular_features, len(LABELS))
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # a fifth faster on CPUs

    def forward(self, scan: Tensor, tabular: Tensor) -> Tensor:
        """`scan` (batch, 2, slices, rows, columns) and `tabular` (batch, 4) to logits (batch, 2), float32."""
        scan = scan.contiguous(memory_format=torch.channels_last_3d)
        features = torch.cat([self.backbone(scan), self.tabular(tabular)], dim=1)
        return self.head(features).float()


def build_network(settings: NetworkSettings, *, seed: int) -> SeverityNetwork:
    """A network with weights drawn from `seed`; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SeverityNetwork(settings)
