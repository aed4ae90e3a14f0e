"""Libraries without the other libraries that they bring along and that nothing here asks them for.

MONAI's package imports all of its modules, and they import whatever optional library is installed: of its 2.8 processor
seconds and 210 MB beside PyTorch, two thirds go to MLflow, pandas, Matplotlib, ITK and the like. scikit-learn imports
pandas where it finds it.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType

# Slow to import, and of no use to networks, to the transforms that training augments with, and to figures of a model.
OPTIONAL = frozenset(
    {
        *("IPython", "PIL", "huggingface_hub", "ignite", "itk", "matplotlib", "mlflow", "nibabel", "onnx"),
        *("onnxruntime", "pandas", "pydicom", "skimage", "sklearn", "tensorboard", "tensorboardX", "torchvision"),
        "transformers",
    }
)


class _Absent:
    """A finder (importlib.abc.MetaPathFinder) to which some libraries are not installed, in this thread alone."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names, self._thread = names, get_ident()

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in self._names and get_ident() == self._thread:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def import_lean(module: str) -> None:
    """Import a module as where the OPTIONAL libraries are not installed; nothing if its package is there already.

    The package then does without them in this process for good: whoever wants MONAI's plots or readers imports it
    first. Everybody else finds the libraries as ever.
    """
    package = module.partition(".")[0]
    if package in sys.modules:
        return
    absent = _Absent(OPTIONAL - {package})
    sys.meta_path.insert(0, absent)
    try:
        import_module(module)
    finally:
        sys.meta_path.remove(absent)
