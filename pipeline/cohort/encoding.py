"""Computes what the frozen layers of an encoder make of a cohort's scans, once for each scan, and keeps it.

COHORT/encoded/ENCODER/TENSOR      features: float32, shape (features,); ENCODER is the encoder's SHA-256
COHORT/encoded/ENCODER-N/TENSOR    maps before its last N stages, for studies that tune these: float32, shape (channels,
                                   slices, rows, columns)

Both are data of the patients: they stay in the site's folder, and are deleted with the tensors that they come
from. They have the name of the tensor, and are deleted before it is written again (`save_scan`), so a scan that is
prepared again is encoded again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from models.compute import PROCESSOR, Compute
from models.encoder_layers import encoded_name
from models.encoders import Encoder, EncoderCard
from models.reasons import ENCODER_FILES
from models.refusal import Refusal
from pipeline.cohort.reasons import PREPROCESSING
from pipeline.cohort.store import Cohort
from pipeline.cohort.tensor_files import is_whole, load_tensor, save_tensor
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site

_AT_ONCE = 4


@torch.inference_mode()
def encode_cohort(
    site: Site,
    encoder: Encoder,
    progress: Callable[[int, int], None],
    *,
    tuned_stages: int = 0,
    compute: Compute = PROCESSOR,
) -> int:
    """Compute features that are missing or damaged, of patients with and without labels; return how many it computed.

    Each scan's features are stored at once, so that an interruption loses nothing. They are computed in float32.
    `progress`: called with the number of scans that are done and their total. `tuned_stages`: if not 0, the maps before
    so many of the last stages instead.

    Raises Refusal: E_PREPROCESSING if the cohort has no scan that was prepared as the encoder needs it, E_COHORT_BUSY,
    E_COHORT_FILE, those of `Compute.use`.
    """
    with Cohort(site) as cohort, cohort.alone():
        scans = cohort.prepared(_settings(encoder.card))
        if not scans:
            raise Refusal(PREPROCESSING)
        folder = cohort.encoded / encoded_name(encoder.card.sha256, tuned_stages)
        folder.mkdir(parents=True, exist_ok=True)
        missing = [name for name in scans if not is_whole(folder / name)]
        progress(len(scans) - len(missing), len(scans))
        exact = compute.exact()
        with exact.use(encoder.layers):
            for start in range(0, len(missing), _AT_ONCE):
                names = missing[start : start + _AT_ONCE]
                given = exact.move(_read(cohort.tensors, names))
                found = encoder.maps(given, tuned_stages) if tuned_stages else encoder.encode(given)
                for name, features in zip(names, found.cpu().contiguous().numpy(), strict=True):
                    save_tensor(folder, name, features)
                progress(len(scans) - len(missing) + start + len(names), len(scans))
        return len(missing)


def _read(tensors: Path, names: Sequence[str]) -> Tensor:
    return torch.stack([torch.from_numpy(load_tensor(tensors / name)) for name in names]).float()


def fits(cohort: Cohort, card: EncoderCard) -> bool:
    """Whether the cohort has scans that were prepared as the encoder needs them. Raises Refusal E_ENCODER_FILES."""
    return bool(cohort.prepared(_settings(card)))


def _settings(card: EncoderCard) -> str:
    try:
        return settings_digest(Preprocessing.model_validate(card.preprocessing))
    except ValidationError as error:
        raise Refusal(ENCODER_FILES) from error
