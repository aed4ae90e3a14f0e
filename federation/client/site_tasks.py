"""The work of one site in a round, as plain functions: arrays in, arrays and listed figures out."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation.client.score_counts import score_counts
from federation.protocol.figure_rounding import rounded
from federation.protocol.flat_weights import Arrays, pack, unpack
from federation.protocol.metric_allowlist import LOSS, Kind, withheld_figures
from federation.protocol.patient_counts import count_patients
from federation.protocol.reasons import COMPUTE_NEED, EMBEDDINGS
from federation.protocol.study_config import ComputeNeed, Study
from federation.protocol.summed_answers import reported
from models.compute import Compute
from models.compute_settings import ComputeSettings
from models.familiarity import Moments
from models.loss import block_regression, bounded_regression
from models.network import SeverityNetwork, build_network
from models.pooling import shape_of_maps
from models.refusal import Refusal
from pipeline.cohort.dataset import Example, Examples
from pipeline.cohort.reasons import PREPROCESSING
from pipeline.cohort.store import Cohort
from pipeline.doctor.reasons import TOO_FEW_PATIENTS
from pipeline.evaluation.baselines import lesion_loads
from pipeline.evaluation.figures import (
    Deployed,
    calibration_figures,
    distance_figures,
    may_report_loss,
    round_figures,
    test_figures,
)
from pipeline.evaluation.shortcuts import appearance, assigned_shares, embed, moments, shortcut_figures
from pipeline.preprocessing.preprocess_settings import settings_digest
from pipeline.site.folder import Site, Split
from pipeline.system.malloc import keep_memory
from pipeline.training.head_finetune import fit_head
from pipeline.training.hidden_blocks import BlockExamples
from pipeline.training.pretraining import PretrainingExamples
from pipeline.training.privacy_budget import check_and_spend
from pipeline.training.train import predict, train


@dataclass(frozen=True)
class Trained:
    """The site's weights after its local epochs, and its figures. `examples`: the weight of the reply."""

    arrays: dict[str, NDArray]
    buffers: dict[str, NDArray]
    metrics: dict[str, float]
    examples: int


@dataclass(frozen=True)
class Evaluated:
    """The site's figures of a model. `examples`: the number of patients evaluated."""

    metrics: dict[str, float]
    examples: int


def load_network(study: Study, arrays: Arrays, buffers: Arrays) -> SeverityNetwork:
    """Build the study's network with these packed tensors."""
    network = build_network(study.network, seed=study.study.seed)
    unpack(network, arrays, buffers)
    return network


def load_examples(site: Site, study: Study, *splits: Split) -> Examples:
    """Load the site's examples of some splits, with the features of the study's encoder if it has one.

    Raises Refusal E_PREPROCESSING if they were prepared differently, E_NOT_ENCODED if features are missing.
    """
    with Cohort.read(site) as cohort:
        if cohort.settings() - {settings_digest(study.preprocessing)}:
            raise Refusal(PREPROCESSING)
        if study.network.encoder:
            cohort.require_encoded(study.network.encoded)
        return Examples(cohort.examples(*splits, encoder=study.network.encoded))


def _enough(site: Site, examples: Examples) -> Examples:
    """Raise Refusal E_TOO_FEW_PATIENTS if there are fewer than the site's own minimum."""
    needed = site.settings.site.min_patients
    if len(examples) < needed:
        raise Refusal(TOO_FEW_PATIENTS, patients=len(examples), needed=needed)
    return examples


def _rounded_figures(site: Site, kind: Kind, metrics: dict[str, float]) -> dict[str, float]:
    """Round figures to their grids, as the site's gateway does too."""
    return rounded(metrics, kind, count_patients(site))


def train_site(
    site: Site,
    study: Study,
    arrays: Arrays,
    buffers: Arrays,
    *,
    round_number: int,
    run: str = "",
    charged: bool = False,
) -> Trained:
    """Run one site's round: evaluate the received model on validation patients, then train for the local epochs.

    In a private study the round is first charged to the site's budget under the name `run`, unless the gateway has
    already done so (`charged`). In a pretraining there is nothing to evaluate (`_pretrain_site`).

    Raises Refusal: E_TOO_FEW_PATIENTS, E_PREPROCESSING, those of `check_and_spend`, of `processor`, and of training and
    evaluation on it.
    """
    if study.network.pretrains:
        return _pretrain_site(site, study, arrays, buffers, round_number)
    network, compute = _opened(site, study, arrays, buffers)
    examples = _enough(site, load_examples(site, study, "train"))
    validation = load_examples(site, study, "validation")
    least = site.settings.site.min_patients
    metrics = round_figures(predict(network, validation, compute=compute), validation.targets, min_patients=least)
    if study.private_round is not None and not charged:
        metrics["epsilon"] = check_and_spend(site, study.private_round, run=run)
    seed = order_seed(study.study.seed, examples, arrays)
    loss = _train(network, examples, study, round_number, seed, compute)
    if may_report_loss(examples.targets, min_patients=least):
        metrics |= loss
    trained, trained_buffers = pack(network)
    return Trained(trained, trained_buffers, _rounded_figures(site, "train", metrics), len(examples))


def _pretrain_site(site: Site, study: Study, arrays: Arrays, buffers: Arrays, round_number: int) -> Trained:
    """Run one site's round of a pretraining, on patients with and without labels. Its one figure is the mean loss."""
    keep_memory()
    network, compute = load_network(study, arrays, buffers), processor(site, study)
    examples = load_scans(site, study)
    _enough(site, examples)
    seed = order_seed(study.study.seed, examples, arrays)
    if study.network.hides_blocks:
        examples = _hide_blocks(examples, study, network, seed)
    loss = train(
        network,
        examples,
        study.training,
        study.schedule(round_number),
        seed=seed,
        proximal_mu=study.proximal_mu,
        compute=compute,
        loss=block_regression if study.network.hides_blocks else bounded_regression,
    )
    metrics = rounded({LOSS: loss}, "train", count_patients(site, pretrains=True))
    return Trained(*pack(network), metrics, len(examples))


def load_scans(site: Site, study: Study) -> PretrainingExamples:
    """Load the scans of a pretraining, without label, age and sex (`Cohort.to_pretrain`).

    Raises Refusal E_PREPROCESSING if they were prepared differently.
    """
    with Cohort.read(site) as cohort:
        rows = cohort.to_pretrain(site.settings.site)
        if not {row.tensor for row in rows} <= set(cohort.prepared(settings_digest(study.preprocessing))):
            raise Refusal(PREPROCESSING)
        scans = [Example(cohort.tensors / row.tensor, None, None, None, None, pseudonym=row.pseudonym) for row in rows]
    return PretrainingExamples(scans, study.preprocessing.window_hu)


def _hide_blocks(examples: Examples, study: Study, network: SeverityNetwork, seed: int) -> BlockExamples:
    """Return the scans with hidden blocks. The server does not know which: nobody else can make the seed."""
    maps = shape_of_maps(network, study.preprocessing.shape)
    return BlockExamples(examples.examples, study.preprocessing.window_hu, maps=maps, seed=seed)


def _train(
    network: SeverityNetwork, examples: Examples, study: Study, round_number: int, seed: int, compute: Compute
) -> dict[str, float]:
    """Run the local epochs of a round; return their loss.

    Neither a private study reports it, nor one with a package's loss: that code could write what it likes into it.
    """
    schedule = study.schedule(round_number)
    if study.privacy is None:
        loss = train(
            network, examples, study.training, schedule, seed=seed, proximal_mu=study.proximal_mu, compute=compute
        )
        return {} if study.training.own_loss else {"train_loss": loss}
    from pipeline.training.private_training import train_privately  # importing Opacus takes a second

    train_privately(network, examples, study.training, study.privacy, schedule, seed=seed, compute=compute)
    return {}


def order_seed(seed: int, examples: Examples, arrays: Arrays) -> int:
    """Return the seed for the order of patients and the augmentation, from the study's seed and the round's weights.

    It also depends on the patients' pseudonyms, which only the site's key makes. The server therefore does not know
    which patient is in which training step. It depends on the received weights too, so that two rounds from
    different weights never use the same order. With the same order in both, the difference of their updates would show
    exactly which patients the two models treat differently. The same cohort, study and weights give the same order.
    """
    pseudonyms = "|".join(sorted(example.pseudonym for example in examples.examples))
    digest = hashlib.sha256(f"{seed}|{pseudonyms}".encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"|{name}|".encode() + array.tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def fine_tune_site(site: Site, study: Study, arrays: Arrays, buffers: Arrays) -> Trained:
    """Fit the model's head again to this site's training patients.

    Raises Refusal: E_TOO_FEW_PATIENTS, E_PREPROCESSING, those of `processor` and `Compute.use`.
    """
    network, compute = _opened(site, study, arrays, buffers)
    examples = _enough(site, load_examples(site, study, "train"))
    fit_head(network, examples, compute=compute)
    weights, _ = pack(network)
    return Trained(weights, dict(buffers), {}, len(examples))


def calibrate_site(site: Site, study: Study, arrays: Arrays, buffers: Arrays, typical: Arrays) -> Evaluated:
    """Fit calibration and thresholds on the site's validation patients; measure their distance from the `typical` scan.

    `typical`: mean and variance of the appearance features over all sites. The distance is omitted if the variance is
    zero, or if the site does not allow such statistics to leave. Raises as `fine_tune_site` does.
    """
    network, compute = _opened(site, study, arrays, buffers)
    validation = _enough(site, load_examples(site, study, "validation"))
    least = site.settings.site.min_patients
    logits = predict(network, validation, compute=compute)
    metrics: dict[str, float] = {}
    if study.sums_answers:
        metrics |= score_counts(logits, validation.targets, min_patients=least)
    else:
        metrics |= calibration_figures(logits, validation.targets, min_patients=least)
    if typical["variance"].any() and site.settings.gateway.embedding_statistics:
        metrics |= distance_figures(appearance(validation), typical["mean"], typical["variance"])
    return Evaluated(_rounded_figures(site, "evaluate.calibrate", metrics), len(validation))


def judge_site(
    site: Site, study: Study, arrays: Arrays, buffers: Arrays, deployed: Deployed, *, audit: bool
) -> Evaluated:
    """Compute figures on the site's test patients, with a calibration and thresholds; `audit`: also those of shortcuts.

    In a study with summed answers: only what can be summed, which needs neither calibration nor thresholds.

    Raises as `fine_tune_site` does.
    """
    network, compute = _opened(site, study, arrays, buffers)
    test, train = _enough(site, load_examples(site, study, "test")), load_examples(site, study, "train")
    least = site.settings.site.min_patients
    logits = predict(network, test, compute=compute)
    metrics = test_figures(
        logits,
        test,
        train,
        deployed,
        min_patients=least,
        histograms=site.settings.gateway.histograms,
        window_hu=study.preprocessing.window_hu,
    )
    if audit:
        splits = {"train": train, "validation": load_examples(site, study, "validation"), "test": test}
        metrics |= shortcut_figures(network, splits, min_patients=least, compute=compute)
    if study.sums_answers:
        loads = lesion_loads(test, study.preprocessing.window_hu)
        metrics = {name: value for name, value in metrics.items() if name in reported("evaluate.test")}
        metrics |= score_counts(logits, test.targets, loads, min_patients=least)
    withheld = withheld_figures("evaluate.test", is_private=study.privacy is not None)
    metrics = {name: value for name, value in metrics.items() if name not in withheld}
    return Evaluated(_rounded_figures(site, "evaluate.test", metrics), len(test))


def embed_site(site: Site, study: Study, arrays: Arrays, buffers: Arrays) -> tuple[Moments, Moments]:
    """Compute means and variances over training patients: of the network's features, and of appearance features.

    Raises as `fine_tune_site` does, and E_EMBEDDINGS if the site does not allow them to leave.
    """
    if not site.settings.gateway.embedding_statistics:
        raise Refusal(EMBEDDINGS)
    network, compute = _opened(site, study, arrays, buffers)
    examples = _enough(site, load_examples(site, study, "train"))
    return moments(embed(network, examples, compute=compute)), moments(appearance(examples))


def assign_site(
    site: Site, study: Study, arrays: Arrays, buffers: Arrays, discriminants: NDArray[np.float32], probed: int
) -> Evaluated:
    """Compute the shares of this site's test patients whose features would be assigned to each of `probed` sites.

    Raises as `fine_tune_site` does.
    """
    network, compute = _opened(site, study, arrays, buffers)
    test = _enough(site, load_examples(site, study, "test"))
    shares = assigned_shares(embed(network, test, compute=compute), discriminants, probed)
    metrics = {f"assigned_{number:02d}": share for number, share in enumerate(shares)}
    return Evaluated(_rounded_figures(site, "evaluate.assign", metrics), len(test))


def processor(site: Site, study: Study) -> Compute:
    """Return the site's processor for a study.

    Raises Refusal E_COMPUTE_NEED if the study needs another one, and those of `Compute.open`.
    """
    compute = Compute.open(site.settings.compute, threads=site.settings.training.threads)
    if need := study.compute.unmet_by(compute):
        raise Refusal(COMPUTE_NEED, need=need)
    return compute


def require_processor(site: Site, study: Study) -> None:
    """Refuse before round 1 what each round's training would refuse, because a refused round may be lost.

    Raises Refusal: those of `processor`, E_COMPUTE_MICRO_BATCH.
    """
    if study.compute == ComputeNeed() and site.settings.compute == ComputeSettings():
        return  # nothing can be wrong, and looking for a GPU takes time
    compute = processor(site, study)
    if compute.micro_batch and study.privacy is None:  # a private step is divided without another result
        compute.parts(build_network(study.network, seed=study.study.seed), study.training.batch_size)


def _opened(site: Site, study: Study, arrays: Arrays, buffers: Arrays) -> tuple[SeverityNetwork, Compute]:
    """Load the network, and find the site's processor.

    Raises ValueError in a pretraining, whose network has no output for a label; a gateway refuses the task before.
    """
    if study.network.pretrains:
        raise ValueError("a pretraining has no such task")
    keep_memory()
    return load_network(study, arrays, buffers), processor(site, study)
