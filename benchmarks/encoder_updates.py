"""What do the updates of a head on a frozen encoder tell a server about scans that it has?

    python benchmarks/encoder_updates.py [--seeds 1 2 ...]

The server knows the encoder, and so the features of each scan that it gets hold of. It wants to know whether this
patient took part in the training of a hospital, and if so, with which PCR result. Each update is compared with the
change that the patient alone would make, whitened by the features of the other hospitals' patients, which it also has.
If it has the scans of all of the hospital's patients, it finds the part of each by regression. The comparison is added
up over the rounds. Hospitals, encoder and heads are those of `encoder_heads`; a hospital's round is the app's own
(`train_site`). The members are a hospital's training patients, the others its remaining patients. Synthetic patients.
Writes results/encoder_updates.{json,md}.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the attack
from encoder_heads import OURS, OURS_ROUNDS, PRIVATE, PrivateForm, forms, interval, made_ready, taught
from learning_methods import weighted_mean
from learning_sites import UNSEEN, Form, area
from run import RESULTS, circumstances, markdown

from federation.client.site_tasks import load_examples, load_network, train_site
from federation.protocol.flat_weights import pack
from federation.protocol.study_config import Study
from models.membership import JOINT, patient_losses
from models.network import build_network
from pipeline.site.folder import Site
from tests.attacks.head_updates import (
    Patients,
    Round,
    Weights,
    fits,
    joined,
    jointly,
    patients_of,
    weights_of,
    whitened,
)

# Added to a covariance, as shares of its mean variance. The attacks use the one with which they do best.
RIDGES = (0.001, 0.01, 0.1, 1.0)
JITTER = 1e-6  # of weights that are sent again: the same weights would get the same answer
AGREED, SUMS, AGAIN = "each update, as agreed", "sums of three hospitals", "each update, first weights in each round"
SETTINGS = {"the default study": OURS, "four small steps a round": OURS_ROUNDS, PRIVATE: PRIVATE}
ONE, EVERY = "took part; it has this scan", "took part; it has all scans of the hospital"
BY_LOSS = "took part; by the last model's loss"
LABEL, BY_MODEL = "PCR of who took part; it has this scan", "PCR of who took part; by the last model"
FIGURES = (ONE, EVERY, BY_LOSS, LABEL, BY_MODEL)


def rounds_at(study: Study, sites: Sequence[Site], *, again: bool) -> dict[str, list[Round]]:
    """Train, and return the rounds of each hospital, and those of the sum under the name ''.

    `again`: the server sends the first weights in each round, with a jitter.
    """
    arrays, buffers = pack(build_network(study.network, seed=study.study.seed))
    first, rng = dict(arrays), np.random.default_rng(study.study.seed)
    seen: dict[str, list[Round]] = {name: [] for name in ("", *(site.name for site in sites))}
    for number in range(1, study.study.rounds + 1):
        replies = [train_site(site, study, arrays, buffers, round_number=number, charged=True) for site in sites]
        share = np.array([reply.examples for reply in replies]) / sum(reply.examples for reply in replies)
        sent = weights_of(load_network(study, arrays, buffers))
        changes = [weights_of(load_network(study, reply.arrays, buffers)) - sent for reply in replies]
        for site, change in zip(sites, changes, strict=True):
            seen[site.name].append(Round(sent, change))
        seen[""].append(Round(sent, np.tensordot(share, np.stack(changes), axes=1)))
        if again:
            arrays = {
                name: array + JITTER * rng.normal(size=array.shape).astype(array.dtype) for name, array in first.items()
            }
        else:
            arrays = weighted_mean([reply.arrays for reply in replies], share)
    return seen


def attacked(study: Study, sites: Sequence[Site], setting: str) -> Iterator[dict[str, Any]]:
    """Attack each hospital in each way; yield the AUROC of the server's answers."""
    network = build_network(study.network, seed=study.study.seed)
    of = {
        site.name: [
            patients_of(network, load_examples(site, study, *splits)) for splits in (("train",), ("validation", "test"))
        ]
        for site in sites
    }
    agreed, again = (rounds_at(study, sites, again=again) for again in (False, True))
    for site in sites:
        candidates = joined(of[site.name])
        members = len(of[site.name][0].inputs)
        known = joined([part for name, parts in of.items() if name != site.name for part in parts])
        for way, rounds in ((AGREED, agreed[site.name]), (SUMS, agreed[""]), (AGAIN, again[site.name])):
            figures = answers(rounds, candidates, members, known)
            if way == AGAIN:  # the server releases no model of this kind
                del figures[BY_LOSS], figures[BY_MODEL]
            yield {"setting": setting, "way": way, "hospital": site.name, **figures}


def answers(
    rounds: Sequence[Round], candidates: Patients, members: int, known: Patients
) -> dict[str, dict[float, float]]:
    """Return the AUROC of the server's answers, by ridge, about the candidates, of whom the first `members` took part.

    Answers by the last model need no ridge and have it 0.
    """
    pcr = candidates.targets[:members, 0]
    truth = [1.0] * members + [0.0] * (len(candidates.inputs) - members)
    found: dict[str, dict[float, float]] = {ONE: {}, EVERY: {}, LABEL: {}}
    for ridge in RIDGES:
        one, positive = fits(rounds, candidates, whitened(candidates, known, ridge))
        every, _ = fits(rounds, candidates, jointly(candidates, ridge))
        found[ONE][ridge], found[EVERY][ridge] = rounded(one, truth), rounded(every, truth)
        found[LABEL][ridge] = rounded(positive[:members], pcr)
    logits = candidates.inputs @ (rounds[-1].sent + rounds[-1].change).T
    losses = patient_losses(logits.astype(np.float32), candidates.targets.astype(np.float32))[JOINT]
    return {**found, BY_LOSS: {0.0: rounded(-losses, truth)}, BY_MODEL: {0.0: rounded(logits[:members, 0], pcr)}}


def rounded(scores: Sequence[float] | Weights, truth: Sequence[float] | Weights) -> float:
    """Return the AUROC with four digits."""
    return round(area(list(scores), list(truth)), 4)


def page(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    seeds = sorted({each["seed"] for each in rows})
    table = []
    for setting in SETTINGS:
        for way in (AGREED, SUMS, AGAIN):
            mine = [each for each in rows if (each["setting"], each["way"]) == (setting, way)]
            table.append([setting, way, *(_mean(mine, what, seeds) for what in FIGURES)])
    lines = [
        "# What updates of a head tell about scans that the server has",
        "",
        f"{about['date']}; {about['machine']}. Three synthetic hospitals of 100 patients, of whom about 65 train; "
        f"{len(seeds)} seeds, mean over the hospitals; 95 % intervals over the seeds. AUROC of the server's answers; "
        "0.5 is guessing. Of four ridges the best one is shown, so the figures are a little too high. "
        "`benchmarks/encoder_updates.py` explains the attack.",
        "",
        *markdown(["study", "what the server sees", *FIGURES], table),
    ]
    return "\n".join(lines) + "\n"


def _mean(rows: Sequence[dict[str, Any]], what: str, seeds: Sequence[int]) -> str:
    """Return the mean over hospitals with its interval over seeds, for the ridge with the highest mean."""
    if what not in rows[0]:
        return "-"
    by_ridge = [
        [float(np.mean([each[what][ridge] for each in rows if each["seed"] == seed])) for seed in seeds]
        for ridge in rows[0][what]
    ]
    return interval(max(by_ridge, key=lambda values: float(np.mean(values))), digits=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    about, rows = circumstances(), []
    with TemporaryDirectory() as folder:
        encoder = taught(Path(folder))
        made: dict[str, Form] = forms(encoder)
        made[PRIVATE] = PrivateForm(**asdict(made[PRIVATE]))
        for seed in chosen.seeds:
            ready = made_ready(Path(folder), made[OURS], encoder, seed)
            sites = [Site.open(order.folder) for order in ready if order.place.at.name != UNSEEN]
            for setting, form in SETTINGS.items():
                for row in attacked(made[form].settings(seed, len(sites)), sites, setting):
                    rows.append({"seed": seed, **row})
                print(f"seed {seed}, {setting}", flush=True)
    (chosen.out / "encoder_updates.json").write_text(json.dumps({**about, "rows": rows}) + "\n")
    text = page(rows, about)
    (chosen.out / "encoder_updates.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
