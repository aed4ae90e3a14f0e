"""Vessels and bronchi inside a lung: trees that grow from the hilum to points spread over the lung.

Radii follow Murray's law: the cube of a branch's radius is the sum of the cubes of its children's radii (Murray, PNAS
1926; 12:207-214).
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.phantom.body.frame import Field, Frame, Mask

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Tree:
    """A tree as a cloud of points along its branches.

    `voxels`: indices (slice, row, column) as floats, shape (points, 3). `radii_mm`: of the branch at each point.
    `step_mm`: length of branch that one point stands for.
    """

    voxels: Points
    radii_mm: Points
    step_mm: float


def grow(root: Points, lung: Mask, frame: Frame, rng: Generator, *, leaves: int, leaf_mm: float) -> Tree:
    """Grow a tree from the voxel `root` to `leaves` points that are drawn in the lung; tips are `leaf_mm` thick."""
    inside = np.argwhere(lung)
    targets = inside[rng.choice(len(inside), min(leaves, len(inside)), replace=False)].astype(float)
    targets = targets[np.argsort(np.linalg.norm(targets - root, axis=1))]
    nodes, parents, paths = [root], [-1], [0.0]
    ends = []
    for target in targets:
        known = np.array(nodes)
        away = np.linalg.norm(known - target, axis=1)
        best = int(np.argmin(away + 0.35 * np.array(paths)))
        steps = max(1, int(np.ceil(away[best])))
        start, bow = known[best], rng.normal(0, 0.12 * away[best], 3)
        for step in range(1, steps + 1):
            share = step / steps
            point = start + share * (target - start) + bow * np.sin(np.pi * share) + rng.normal(0, 0.15, 3)
            parents.append(best if step == 1 else len(nodes) - 1)
            paths.append(paths[parents[-1]] + away[best] / steps)
            nodes.append(point)
        ends.append(len(nodes) - 1)
    cubes = np.zeros(len(nodes))
    cubes[ends] = (leaf_mm * rng.uniform(0.7, 1.3, len(ends))) ** 3
    for node in range(len(nodes) - 1, 0, -1):  # children have higher numbers than their parents
        cubes[parents[node]] += cubes[node]
    return _dense(np.array(nodes), np.array(parents), np.cbrt(cubes), frame.step_mm)


def _dense(nodes: Points, parents: NDArray[np.int64], radii: Points, step_mm: float, cuts: int = 3) -> Tree:
    """Return `cuts` points for each piece of branch."""
    pieces = np.arange(1, len(nodes))
    start, end = nodes[parents[pieces]], nodes[pieces]
    shares = (np.arange(cuts) + 0.5) / cuts
    points = start[:, None] + shares[None, :, None] * (end - start)[:, None]
    lengths = np.linalg.norm(end - start, axis=1).mean() * step_mm / cuts
    return Tree(points.reshape(-1, 3), np.repeat(radii[pieces], cuts), float(lengths))


def filled_share(trees: list[Tree], frame: Frame, *, thicker_mm: float = 0.0) -> Field:
    """Return the share of each voxel that the branches fill, 0 to 1; `thicker_mm` is added to all radii."""
    share = np.zeros(frame.shape, np.float32)
    for tree in trees:
        radii = tree.radii_mm + thicker_mm
        for low, high in ((0.0, 2.5), (2.5, 5.0), (5.0, np.inf)):
            chosen = (radii >= low) & (radii < high)
            if not chosen.any():
                continue
            part = np.zeros(frame.shape, np.float32)
            at = np.rint(tree.voxels[chosen]).astype(int)
            held = np.all((at >= 0) & (at < frame.shape), axis=1)
            volumes = np.pi * radii[chosen] ** 2 * tree.step_mm / frame.step_mm**3
            np.add.at(part, tuple(at[held].T), volumes[held])
            wide = float(radii[chosen].mean()) * 0.55 / frame.step_mm
            share += ndimage.gaussian_filter(part, max(0.4, wide), truncate=2.5)
    return np.minimum(share, 1.0)
