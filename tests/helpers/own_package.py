"""Write a package with a network of one's own, as pip would install it into a folder."""

from pathlib import Path

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


def write_package(
    folder: Path, name: str = "my-networks", code: str = CODE, *, networks: tuple[str, ...] = NETWORKS, root: str = ""
) -> Path:
    """Write the package into `folder`, which is created if needed; return the folder.

    `networks`: its entry points, each a function of `code`. `root`: of its module; default: the name with underscores.
    """
    root = root or name.replace("-", "_")
    about, module = folder / f"{name.replace('-', '_')}-1.0.dist-info", folder / root
    for path in (about, module):
        path.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{network} = {root}.nets:{network}" for network in networks]
    (about / "entry_points.txt").write_text("\n".join(["[fedthorax.networks]", *lines, ""]))
    (module / "__init__.py").write_text("")
    (module / "nets.py").write_text(code)
    return folder
