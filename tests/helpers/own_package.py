"""Write a package with a network, loss, transform and strategy of one's own, as pip would install it in a folder."""

from collections.abc import Mapping
from pathlib import Path

from models.own_packages import GROUPS, Kind

CODE = '''"""A small 3D network."""

from torch import Tensor, nn


class Tiny(nn.Module):
    """Three convolutions, each of which halves the grid."""

    features = 32

    def __init__(self, *, group: bool = False) -> None:
        super().__init__()
        widths = (2, 8, 16, self.features)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False),
                    nn.GroupNorm(4, after) if group else nn.BatchNorm3d(after),
                    nn.ReLU(),
                )
                for before, after in zip(widths, widths[1:])
            )
        )

    def forward(self, scan: Tensor) -> Tensor:
        return self.blocks(scan)


def tiny() -> nn.Module:
    return Tiny()


def tiny_group() -> nn.Module:
    return Tiny(group=True)
'''
NETWORKS = ("tiny", "tiny_group")
PARTS_CODE = '''"""A loss, a transform and a strategy."""

import numpy as np
import torch
import torch.nn.functional as F


def focal(logits, targets, known, gamma=2.0):
    """Weight a label by how wrong the model is (Lin et al. 2017)."""
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    losses = losses * (1 - torch.exp(-losses)) ** gamma
    return (losses * known).sum(dim=1) / known.sum(dim=1)


def dimmed(scan, generator, share=0.1):
    """Lower the densities, not the lung mask, by a random share."""
    scan = scan.clone()
    scan[0] -= share * torch.rand((), generator=generator)
    return scan


def half_way(updates, patients, rate=0.5):
    """Move half as far as the mean."""
    return rate * np.average(updates, axis=0, weights=patients)
'''
PARTS: Mapping[Kind, tuple[str, ...]] = {"loss": ("focal",), "transform": ("dimmed",), "strategy": ("half_way",)}


def write_package(
    folder: Path,
    name: str = "my-networks",
    code: str = CODE,
    *,
    networks: tuple[str, ...] = NETWORKS,
    root: str = "",
    parts: Mapping[Kind, tuple[str, ...]] | None = None,
    parts_code: str = PARTS_CODE,
) -> Path:
    """Write the package into `folder`, which is created if needed; return the folder.

    `networks`: its entry points, each a function of `code`. `parts`: those of other kinds, functions of `parts_code`.
    `root`: of its module; default: the name with underscores.
    """
    root = root or name.replace("-", "_")
    about, module = folder / f"{name.replace('-', '_')}-1.0.dist-info", folder / root
    for path in (about, module):
        path.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{GROUPS['network']}]"] if networks else []
    lines += [f"{network} = {root}.nets:{network}" for network in networks]
    for kind, names in (parts or {}).items():
        lines += [f"[{GROUPS[kind]}]", *(f"{each} = {root}.parts:{each}" for each in names)]
    (about / "entry_points.txt").write_text("\n".join([*lines, ""]))
    (module / "__init__.py").write_text("")
    if networks:
        (module / "nets.py").write_text(code)
    if parts:
        (module / "parts.py").write_text(parts_code)
    return folder
