"""The public Python API of Fedthorax: what a notebook or a script needs, under one name.

This package holds no code of its own. Each name is imported from the module that defines it when it is first used, so
`import fedthorax` loads neither torch nor Flower. Names that are not in `__all__` may change in any version.

Read and score a scan: `read_one`, `prepare`, `load_release`, `score`.
Work at one site: `Site`, `ingest`, `CohortDataset`.
Run and compare studies: `Study`, `load_settings`, `rehearse`, `read_results`, `compare`, `pool`, `write_report`.
Judge a model: `auroc`, `auprc`, `auroc_difference`, `sensitivity_at`, `specificity_at`.
Work without real patients: `HOSPITALS`, `synthetic_site`, `write_cohort`, `synthetic_stoic2021`.
Work with public data: `import_stoic2021`.
Know what may leave a site: `FIGURES`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from federation.comparison.compare_runs import compare
    from federation.comparison.pooled import pool
    from federation.coordinator.rehearsal import rehearse
    from federation.protocol.metric_allowlist import FIGURES
    from federation.protocol.study_config import Study
    from federation.report.page import write_report
    from federation.runs.results import read_results
    from models.refusal import Refusal
    from models.release import Release, load_release
    from models.settings import load_settings
    from pipeline.cohort.ingest import ingest
    from pipeline.cohort.torch_dataset import CohortDataset
    from pipeline.datasets.stoic2021 import import_stoic2021
    from pipeline.evaluation.discrimination import (
        Estimate,
        auprc,
        auroc,
        auroc_difference,
        sensitivity_at,
        specificity_at,
    )
    from pipeline.imaging.volume import Volume
    from pipeline.phantom.cohorts import synthetic_site, write_cohort
    from pipeline.phantom.hospitals import HOSPITALS
    from pipeline.phantom.stoic2021_layout import synthetic_stoic2021
    from pipeline.preprocessing.preprocess import prepare
    from pipeline.preprocessing.preprocess_settings import Preprocessing
    from pipeline.scoring.score import score
    from pipeline.scoring.single_scan import read_one
    from pipeline.site.folder import Site

__all__ = [
    "FIGURES",
    "HOSPITALS",
    "CohortDataset",
    "Estimate",
    "Preprocessing",
    "Refusal",
    "Release",
    "Site",
    "Study",
    "Volume",
    "auprc",
    "auroc",
    "auroc_difference",
    "compare",
    "import_stoic2021",
    "ingest",
    "load_release",
    "load_settings",
    "pool",
    "prepare",
    "read_one",
    "read_results",
    "rehearse",
    "score",
    "sensitivity_at",
    "specificity_at",
    "synthetic_site",
    "synthetic_stoic2021",
    "write_cohort",
    "write_report",
]

# The module that defines each name; the imports above say the same to type checkers.
_DEFINED_IN = {
    "FIGURES": "federation.protocol.metric_allowlist",
    "HOSPITALS": "pipeline.phantom.hospitals",
    "CohortDataset": "pipeline.cohort.torch_dataset",
    "Estimate": "pipeline.evaluation.discrimination",
    "Preprocessing": "pipeline.preprocessing.preprocess",
    "Refusal": "models.refusal",
    "Release": "models.release",
    "Site": "pipeline.site.folder",
    "Study": "federation.protocol.study_config",
    "Volume": "pipeline.imaging.volume",
    "auprc": "pipeline.evaluation.discrimination",
    "auroc": "pipeline.evaluation.discrimination",
    "auroc_difference": "pipeline.evaluation.discrimination",
    "compare": "federation.comparison.compare_runs",
    "import_stoic2021": "pipeline.datasets.stoic2021",
    "ingest": "pipeline.cohort.ingest",
    "load_release": "models.release",
    "load_settings": "models.settings",
    "pool": "federation.comparison.pooled",
    "prepare": "pipeline.preprocessing.preprocess",
    "read_one": "pipeline.scoring.single_scan",
    "read_results": "federation.runs.results",
    "rehearse": "federation.coordinator.rehearsal",
    "score": "pipeline.scoring.score",
    "sensitivity_at": "pipeline.evaluation.discrimination",
    "specificity_at": "pipeline.evaluation.discrimination",
    "synthetic_site": "pipeline.phantom.cohorts",
    "synthetic_stoic2021": "pipeline.phantom.stoic2021_layout",
    "write_cohort": "pipeline.phantom.cohorts",
    "write_report": "federation.report.page",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return [*__all__]
