"""Defines the networks: a MONAI backbone (3D or slice by slice), late fusion of age and sex, one logit per label.

A network that is only pretrained has measures of the scan as its outputs instead (`AUXILIARY`), or at each place of its
last maps the densities of hidden blocks (`BLOCKS`): the head is then a convolution of 1 x 1 x 1.
"""

import torch
from torch import Tensor, nn

from models.import_lean import import_lean
from models.network_settings import AGE_SCALE_YEARS, TABULAR, NetworkSettings

HEAD_RMS = 0.4  # largest RMS of a label's weights on fixed features of age and sex


def banded(tabular: Tensor, band_years: int) -> Tensor:
    """Replace each known age in `tabular` (batch, 4) by the middle of its band of `band_years` years; 0: no change.

    With exact ages, a unit with a threshold between two ages could single out one patient.
    """
    if not band_years:
        return tabular
    width = band_years / AGE_SCALE_YEARS
    middle = (torch.floor(tabular[:, 0] / width) + 0.5) * width
    age = torch.where(tabular[:, 1] > 0, middle, tabular[:, 0])
    return torch.cat([age[:, None], tabular[:, 1:]], dim=1)


# Each row defines one feature: weights of age, age known, sex, sex known.
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
_OFFSETS = (0.5, 1.5)  # added to each feature; with the first, the threshold is 10 years from the age of 60


def _fix_features(layer: nn.Linear) -> None:
    """Set the fixed weights of the layer for age and sex: hinge functions, each active for many patients.

    The gradient of a learnt layer would reveal, threshold by threshold, how many patients of each age and sex have the
    label. A layer drawn from a seed could be chosen so that a threshold singles out one patient. With fixed features
    only the head is learnt, over groups that nobody can choose.
    """
    with torch.no_grad():
        for place in range(layer.out_features):
            layer.weight[place] = torch.tensor(_DIRECTIONS[place % len(_DIRECTIONS)], dtype=torch.float32)
            layer.bias[place] = _OFFSETS[place // len(_DIRECTIONS)]
    layer.requires_grad_(False)


class SeverityNetwork(nn.Module):
    """Maps a scan and tabular data to two logits, in the order of LABELS; in pretraining to AUXILIARY or BLOCKS."""

    def __init__(self, settings: NetworkSettings) -> None:
        # Imported here because it takes a second, and the workers that ingest scans do not need it.
        import_lean("monai")
        from models.backbones import build_backbone

        super().__init__()
        self.backbone, self.features = build_backbone(settings)
        self.is_own, self.has_encoder, self.hides_blocks = (
            settings.is_own,
            bool(settings.encoder),
            settings.hides_blocks,
        )
        self.age_band_years = settings.age_band_years
        self.fixed = settings.tabular == "fixed"
        layer = nn.Linear(TABULAR, settings.tabular_features)
        if settings.tabular == "fixed":
            _fix_features(layer)
        self.tabular = nn.Sequential(layer, nn.ReLU())
        self.head = nn.Linear(self.features + settings.tabular_features, len(settings.output_names))
        if settings.is_own or (settings.encoder and not settings.tuned_stages):
            return
        channels_last = torch.channels_last if settings.is_slicewise else torch.channels_last_3d
        self.to(memory_format=channels_last)  # type: ignore[call-overload]  # a fifth faster on CPUs

    def forward(self, scan: Tensor, tabular: Tensor) -> Tensor:
        """Map `scan` (batch, 2, slices, rows, columns) and `tabular` (batch, 4) to logits (batch, outputs), float32.

        In pretraining on hidden blocks the outputs are (batch, places, outputs).

        With an encoder, `scan` may also be what its frozen layers make of the scans (`models.encoders`).
        """
        return self.head(self.joined(scan, tabular)).float()

    @torch.no_grad()
    def hold_short(self) -> None:
        """Limit each label's weights on fixed features of age and sex to HEAD_RMS, after a training step.

        This is a max-norm constraint (Srebro & Shraibman, COLT 2005). Without it, a model with large weights there
        would turn an update into a count of patients by age and sex, and would look like any other model. Learnt
        features have no limit.
        """
        if self.fixed:
            weights = self.head.weight[:, self.features :]
            rms = weights.square().mean(dim=1, keepdim=True).sqrt()
            weights.mul_((HEAD_RMS / rms.clamp(min=1e-12)).clamp(max=1.0))

    def joined(self, scan: Tensor, tabular: Tensor) -> Tensor:
        """Return the input of the head: the scan's features, then those of age and sex, shape (batch, features).

        In pretraining on hidden blocks it is (batch, places, features).
        """
        scans, known = self.of_scans(scan), self.tabular(banded(tabular, self.age_band_years))
        if self.hides_blocks:
            known = known[:, None].expand(-1, scans.shape[1], -1)
        return torch.cat([scans, known], dim=-1)

    def of_scans(self, scan: Tensor) -> Tensor:
        """Return the backbone's features of scans, without age and sex, shape (batch, features).

        In pretraining on hidden blocks they are those of each place, shape (batch, places, features).
        """
        if scan.ndim == 5:
            scan = scan.contiguous(memory_format=torch.channels_last_3d)
        found: Tensor = self.backbone(scan)
        return found.unflatten(1, (-1, self.features)) if self.hides_blocks else found


def build_network(settings: NetworkSettings, *, seed: int) -> SeverityNetwork:
    """Build a network with weights drawn from `seed`, without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SeverityNetwork(settings)
