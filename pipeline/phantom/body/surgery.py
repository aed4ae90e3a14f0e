"""What moves heart and diaphragm: an operation on a lung, or fluid that fills a side of the chest."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from pipeline.phantom.body.frame import SIDES, Frame


@dataclass(frozen=True)
class Surgery:
    """The state after an operation, or with a side full of fluid.

    `side`: -1 right, 1 left, 0 none. `without`: the side whose lung was removed.
    `shift_mm`: of the mediastinum to the patient's left. `lift_mm`: of the diaphragm on that side.
    """

    side: int = 0
    without: int = 0
    shift_mm: float = 0.0
    lift_mm: float = 0.0

    @classmethod
    def draw(cls, rng: Generator) -> "Surgery":
        """Draw it: none in most, a lobe in 5 %, a whole lung in 1 %; a collapsed lobe has the same effect."""
        kind = rng.choice(["none", "lobe", "lung"], p=[0.94, 0.05, 0.01])
        side = int(rng.choice(SIDES))
        if kind == "none":
            return cls()
        if kind == "lobe":
            return cls(side, 0, side * rng.uniform(5, 30), rng.uniform(10, 45))
        return cls(side, side, side * rng.uniform(15, 50), rng.uniform(20, 80))

    @classmethod
    def draw_full_side(cls, rng: Generator) -> "Surgery":
        """Draw a side that is full of fluid: half of the time its lung was removed, else fluid presses it together.

        What is left after a removal draws the heart to its side; fluid pushes it, and the diaphragm, away.
        """
        side = int(rng.choice(SIDES))
        if rng.random() < 0.5:
            return cls(side, side, side * rng.uniform(0, 50), rng.uniform(0, 80))
        return cls(side, 0, -side * rng.uniform(0, 35), rng.uniform(-35, 10))

    def raised_mm(self, side: int) -> np.float32:
        """Return by how much the diaphragm of a side is raised."""
        return np.float32(self.lift_mm if side == self.side else 0.0)

    def shifted(self, frame: Frame) -> Frame:
        """Return the coordinates of what lies between the lungs."""
        return Frame(frame.z, frame.y, frame.x - np.float32(self.shift_mm), frame.step_mm) if self.side else frame
