"""The synthetic hospitals of learning.py: those that train, and two that do not, for each kind of difference.

All lesions have half of their usual density, so that no model is near the best possible AUROC. Every seed has other
patients at every hospital, except at the foreign one, whose bodies take too long to draw again for each seed.
"""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.random import Generator
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from federation.protocol.study_config import Study
from models.network_settings import LABELS
from models.settings import load_settings
from pipeline.phantom.anatomy import Field, Grid
from pipeline.phantom.cohorts import Body, plain, synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS, Anatomy, Hospital, Scanner
from pipeline.phantom.patients import CaseMix
from pipeline.phantom.scans import acquire
from pipeline.preprocessing.golden_volume import golden_digest
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site

CONFIGS = Path(__file__).parents[1] / "configs"
LEAST = 2  # minimum number of patients for a metric; a hospital of 60 has some nine for validation
FOREIGN_SEED = 1
HEIGHT_MM, WIDTH_MM = 285.0, 380.0  # of each scan

_MIX = CaseMix(pcr_prevalence=0.6, mean_age_years=61, median_load=0.14, lesion_density=0.5)


@dataclass(frozen=True)
class Form:
    """The size of the benchmark: the network, the grids, the rounds and the patients.

    `study`: settings in place of the defaults of a study, by table. `pixel`: the scanners' pixels and slices in
    multiples of the full form's. `foreign_patients`: patients of the foreign hospital.
    """

    name: str
    study: dict[str, dict[str, object]]
    pixel: float
    unseen_patients: int
    foreign_patients: int

    def settings(self, seed: int, sites: int) -> Study:
        """Return the study that `fedthorax study init` writes, for this seed and so many sites, in this form."""
        usual = load_settings(CONFIGS / "study.toml", Study).model_dump()
        tables = {name: table for name, table in usual.items() if table is not None}
        tables |= {name: tables.get(name, {}) | changed for name, changed in self.study.items()}
        tables["study"] |= {"name": "learning", "seed": seed, "sites": sites, "quorum": sites, "synthetic": True}
        tables["aggregation"].pop("summed_answers", None)  # which changes no weight, and needs three sites
        return Study.model_validate(tables)

    def changed(self, settings: Sequence[str]) -> "Form":
        """Return this form with other settings of the study, each given as TABLE.KEY=VALUE with a TOML value.

        Raises ValueError if one has another form, or is no setting of a study.
        """
        study = {table: dict(keys) for table, keys in self.study.items()}
        for setting in settings:
            table, _, rest = setting.partition(".")
            study.setdefault(table, {}).update(_read_setting(setting, rest))
        form = replace(self, name=" ".join([self.name, *settings]), study=study)
        try:
            for kind in KINDS.values():
                form.settings(0, len(kind.places))
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise ValueError("; ".join(problems)) from error
        return form

    @property
    def preprocessing(self) -> Preprocessing:
        return self.settings(1, 1).preprocessing

    @cached_property
    def golden(self) -> str:
        """The digest that hospitals compare: it changes if scans are prepared in another way, by code or weights."""
        return golden_digest(self.preprocessing)

    def cohorts(self, root: Path) -> Path:
        """Return the folder of this form's cohorts."""
        return root / settings_digest(self.preprocessing)


FORMS = {
    form.name: form
    for form in (
        Form("default", {}, pixel=1.0, unseen_patients=400, foreign_patients=200),
        # A quarter of the processor time: for a look, and for `make bench`.
        Form(
            "quick",
            {
                "network": {"architecture": "resnet10"},
                "preprocessing": {"method": 1, "shape": (24, 32, 32), "working_spacing_mm": 5.0},
            },
            pixel=1.5,
            unseen_patients=400,
            foreign_patients=60,
        ),
    )
}


def _read_setting(setting: str, rest: str) -> dict[str, object]:
    """Return the key and the value of TABLE.KEY=VALUE. `rest`: what follows the first dot."""
    try:
        if read := tomllib.loads(rest):
            return read
        problem = "nothing is set"
    except ValueError as error:
        problem = str(error)
    except RecursionError:
        problem = "it is nested too deeply"
    raise ValueError(
        f"{setting!r:.100} is not TABLE.KEY=VALUE with a value of TOML, such as study.rounds=40: {problem}"
    )


@dataclass(frozen=True)
class OtherDose:
    """Scans PCR-positive patients with another dose than the others: a confounder of the label.

    `noise`: factor of the noise; `blur`: factor of the blur; `offset_hu`: added to the scanner's.
    """

    noise: float = 1.8
    blur: float = 0.8
    offset_hu: float = 25.0

    def __call__(self, body: Body, scanner: Scanner, rng: Generator) -> tuple[Field, Scanner]:
        if body.patient.pcr_positive:
            scanner = replace(
                scanner,
                noise_hu=self.noise * scanner.noise_hu,
                blur_mm=self.blur * scanner.blur_mm,
                offset_hu=scanner.offset_hu + self.offset_hu,
            )
        return acquire(body.hu, scanner, rng), scanner


@dataclass(frozen=True)
class Place:
    """One hospital of a kind: scanner and case mix, number of patients, its confounder if it has one."""

    at: Hospital
    patients: int
    confounder: OtherDose | None = None


def _scanner(noise_hu: float, blur_mm: float, offset_hu: float, slice_mm: float) -> Scanner:
    usual = HOSPITALS[0].scanner
    slices = round(HEIGHT_MM / slice_mm)
    grid = Grid((slices, 96, 96), (slice_mm, WIDTH_MM / 96, WIDTH_MM / 96))
    return replace(usual, grid=grid, noise_hu=noise_hu, blur_mm=blur_mm, offset_hu=offset_hu)


def _hospital(name: str, scanner: Scanner, **mix: float) -> Hospital:
    return replace(HOSPITALS[0], name=name, scanner=scanner, mix=replace(_MIX, **mix))


# Noise, blur, offset and distance of slices of eight scanners.
_SCANNERS = [
    _scanner(12, 3.4, -30, 6.0),
    _scanner(60, 1.2, 30, 4.2),
    _scanner(25, 2.4, 0, 5.0),
    _scanner(35, 1.8, 15, 4.6),
    _scanner(18, 3.0, -15, 5.0),
    _scanner(50, 2.0, -20, 4.4),
    _scanner(15, 2.8, 20, 4.2),
    _scanner(40, 3.2, 10, 5.6),
]
_USUAL = _SCANNERS[2]
_CONFOUNDED = (1, 4, 6)  # of each eight hospitals


def _small(count: int) -> Iterator[Place]:
    """Yield hospitals of 60 patients; the first ones are the same for any count."""
    for number in range(count):
        at = _hospital(f"small-{number + 1:02d}", _SCANNERS[number % 8])
        yield Place(at, 60, OtherDose() if number % 8 in _CONFOUNDED else None)


@dataclass(frozen=True)
class Kind:
    """One kind of difference between hospitals. `goal`: least ratio to pooled training, and least lower end of it.

    `is_small`: the hospitals are small, so that a federation should gain much over each of them.
    `locals_of`: the kind whose local models are compared, if this one has the same hospitals and more.
    """

    says: str
    places: tuple[Place, ...]
    goal: tuple[float, float]
    is_small: bool = False
    locals_of: str = ""

    @cached_property
    def names(self) -> list[str]:
        return [place.at.name for place in self.places]


_THREE = (0.99, 0.98)
_SMALL = (0.98, 0.95)
KINDS = {
    "label": Kind(
        "three hospitals of 100; PCR-positive: 35, 60 and 85 % of the patients; severe among them: about 12, 25, 45 %",
        (
            Place(_hospital("few", _USUAL, pcr_prevalence=0.35, severe_intercept=-5.6), 100),
            Place(_hospital("usual", _USUAL), 100),
            Place(_hospital("many", _USUAL, pcr_prevalence=0.85, severe_intercept=-3.0), 100),
        ),
        _THREE,
    ),
    "scanner": Kind(
        "three hospitals of 100; noise of 12, 60 and 25 HU, blur of 3.4, 1.2 and 2.4 mm, offsets of -30, +30 and 0 HU, "
        "slices of 6.0, 4.2 and 5.0 mm",
        tuple(
            Place(_hospital(name, scanner), 100)
            for name, scanner in zip(("soft", "sharp", "middle"), _SCANNERS, strict=False)
        ),
        _THREE,
    ),
    "size": Kind(
        "three hospitals of 180, 75 and 45",
        tuple(
            Place(_hospital(name, _USUAL), patients)
            for name, patients in (("large", 180), ("medium", 75), ("little", 45))
        ),
        _THREE,
    ),
    "8 small": Kind(
        "eight hospitals of 60 with other scanners; at three of them PCR-positive patients are scanned with another "
        "dose: 1.8 times the noise, 0.8 times the blur, +25 HU",
        tuple(_small(8)),
        _SMALL,
        is_small=True,
    ),
    "20 small": Kind(
        "twenty hospitals of 60: those of '8 small' and twelve more with the same scanners; eight of the twenty have "
        "the other dose",
        tuple(_small(20)),
        _SMALL,
        is_small=True,
        locals_of="8 small",
    ),
}
_UNSEEN = _hospital("unseen", _scanner(32, 2.6, 15, 4.8))
UNSEEN, FOREIGN = "unseen", "foreign"


@dataclass(frozen=True)
class Order:
    """A cohort to write; nothing is done if its folder exists."""

    folder: Path
    place: Place
    seed: int
    form: Form
    anatomy: Anatomy = "template"


def orders(root: Path, form: Form, kind: str, seed: int) -> list[Order]:
    """Return the cohorts of the hospitals that train in a kind."""
    folder = form.cohorts(root) / str(seed)
    return [Order(folder / place.at.name, place, seed, form) for place in KINDS[kind].places]


def test_orders(root: Path, form: Form, seed: int) -> list[Order]:
    """Return the unseen hospital, and the one with bodies of the other generator, the same for all seeds."""
    folder = form.cohorts(root)
    return [
        Order(folder / str(seed) / UNSEEN, Place(_UNSEEN, form.unseen_patients), seed, form),
        Order(
            folder / FOREIGN,
            Place(replace(_UNSEEN, name=FOREIGN), form.foreign_patients),
            FOREIGN_SEED,
            form,
            anatomy="random",
        ),
    ]


def coarser(at: Hospital, pixel: float) -> Hospital:
    """Return the hospital with larger voxels over the same range."""
    grid = at.scanner.grid
    shape = (round(grid.shape[0] / pixel), round(grid.shape[1] / pixel), round(grid.shape[2] / pixel))
    up, back, left = (n * s / m for n, s, m in zip(grid.shape, grid.spacing_mm, shape, strict=True))
    return replace(at, scanner=replace(at.scanner, grid=Grid(shape, (up, back, left))))


def write(order: Order) -> None:
    """Write one cohort, unless it is there. An interrupted one is written again."""
    done = order.folder / "complete"
    if done.exists():
        return
    form = order.form
    if order.folder.exists():
        site = Site.open(order.folder)
    else:
        tables = "[training]\nthreads = 1"
        name = order.place.at.name
        site = synthetic_site(order.folder, name, seed=order.seed, min_patients=LEAST, tables=tables)
    write_cohort(
        site,
        coarser(order.place.at, form.pixel),
        patients=order.place.patients,
        seed=order.seed,
        settings=form.preprocessing,
        acquisition=order.place.confounder or plain,
        anatomy=order.anatomy,
    )
    done.touch()


def area(scores: Sequence[float], labels: Sequence[float]) -> float:
    """AUROC over patients with a known label (not NaN); NaN if all labels are equal."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(y)
    return float(roc_auc_score(y[known], x[known])) if len(set(y[known])) == 2 else float("nan")


def areas(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return the AUROC of each label; `scores` and `targets` have shape (patients, labels)."""
    return {label: area(scores[:, k], targets[:, k]) for k, label in enumerate(LABELS)}
