"""Imports a heavy library without its unused optional dependencies.

MONAI imports all of its modules, and they import every optional library that is installed. This takes 3.6 processor
seconds and 210 MB in addition to PyTorch; without these libraries it takes 0.4 s. Most are for MLflow, pandas,
Matplotlib, ITK and SciPy. scikit-learn needs SciPy, and imports pandas if it is installed.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType

# Slow to import, and not needed for networks, augmentation in training or metrics of a model. By importing package.
OPTIONAL = {
    "monai": frozenset(
        {
            *("IPython", "PIL", "bs4", "filelock", "gdown", "huggingface_hub", "ignite", "itk", "jsonschema"),
            *("matplotlib", "mlflow", "nibabel", "onnx", "onnxruntime", "pandas", "psutil", "pydicom", "requests"),
            *("scipy", "scipy.ndimage", "scipy.optimize", "scipy.signal", "scipy.sparse", "scipy.spatial", "skimage"),
            *("sklearn", "tensorboard", "tensorboardX", "torchvision", "transformers", "yaml"),
        }
    ),
    "sklearn": frozenset({"pandas"}),
}


class _Absent:
    """A finder (importlib.abc.MetaPathFinder) that hides some libraries, only in this thread."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names, self._thread = names, get_ident()

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in self._names and get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def import_lean(module: str) -> None:
    """Import a module of a package in OPTIONAL as if those libraries were not installed.

    Does nothing if the package is already imported. The package then works without them for the rest of the process.
    To use MONAI's plots or readers, import MONAI before. Other modules can import the libraries as usual.
    """
    package = module.partition(".")[0]
    if package in sys.modules:
        return
    absent = _Absent(OPTIONAL[package])
    sys.meta_path.insert(0, absent)
    try:
        import_module(module)
    finally:
        sys.meta_path.remove(absent)
