"""The study's own app with a small random step instead of training, so that all weights move that training moves."""

import numpy as np

from federation.client import client_app
from federation.client.site_tasks import Trained
from federation.gateway.batch_norm_bounds import steps_of_round
from federation.gateway.schema import work_out
from federation.protocol.batch_norm import is_counter
from federation.protocol.patient_counts import count_patients

STEP = 1e-3  # of the length of all weights


def train_site(site, study, arrays, buffers, **_):
    patients = count_patients(site).of_split["train"]
    epochs, batch_size = study.study.local_epochs, study.training.batch_size
    steps = steps_of_round(patients, batch_size=batch_size, epochs=epochs, steps=study.study.local_steps)
    counted = {name: array + steps if is_counter(name) else array for name, array in buffers.items()}
    rng, schema = np.random.default_rng(), work_out(study.model_dump_json().encode())
    moved = {name: array + _step(array, schema.fixed(name), rng) for name, array in arrays.items()}
    return Trained(moved, counted, {}, patients)


def _step(array, fixed, rng):
    step = rng.standard_normal(array.size, np.float32)
    for start, end in fixed:
        step[start:end] = 0
    return step * np.float32(STEP * np.linalg.norm(array) / np.linalg.norm(step))


client_app.train_site = train_site
app = client_app.app
