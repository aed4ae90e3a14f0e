"""Who a synthetic body belongs to: an adult of either sex and any age."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator


@dataclass(frozen=True)
class Person:
    """An adult. `size`: of the chest, as a factor; women's chests are smaller."""

    age_years: float
    is_female: bool
    size: float

    @classmethod
    def draw(cls, rng: Generator) -> "Person":
        """Draw an adult of 18 to 95 years."""
        is_female = bool(rng.random() < 0.5)
        return cls.of(float(rng.uniform(18, 95)), rng, is_female=is_female)

    @classmethod
    def of(cls, age_years: float, rng: Generator, *, is_female: bool) -> "Person":
        """Draw what age and sex leave open."""
        return cls(age_years, is_female, (0.95 if is_female else 1.03) * rng.normal(1, 0.03))

    @property
    def wear(self) -> float:
        """What age does to vessels, bones and lungs, from 0 at 30 years to 1 at 90."""
        return float(np.clip((self.age_years - 30) / 60, 0, 1))
