"""The signature of a candidate in MLflow: names, types and shapes of what the network takes and returns."""

import numpy as np

from models.network_settings import CHANNELS, LABELS, TABULAR
from pipeline.preprocessing.preprocess_settings import Preprocessing

MLMODEL = "MLmodel"


def mlmodel(run_id: str, preprocessing: Preprocessing) -> str:
    """Return the text of the file MLmodel, which MLflow reads the schema of a model version from.

    It names no flavour, so `mlflow.pyfunc.load_model` refuses the model: only fedthorax can prepare its input. The
    first dimension is the batch. Inputs and output are those of `SeverityNetwork.forward`: logits, to be calibrated.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    float32 = np.dtype("float32")
    image = TensorSpec(float32, (-1, CHANNELS, *preprocessing.shape), "image")
    tabular = TensorSpec(float32, (-1, TABULAR), "tabular")
    logits = TensorSpec(float32, (-1, len(LABELS)), "logits")
    signature = ModelSignature(inputs=Schema([image, tabular]), outputs=Schema([logits]))
    metadata = {"outputs": list(LABELS)}
    return str(Model("model", run_id, signature=signature, metadata=metadata).to_yaml())
