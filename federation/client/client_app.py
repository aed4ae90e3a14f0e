"""The study's ClientApp: one handler for each kind of message. `site_tasks` does the work itself."""

import functools
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from federation.client.site_tasks import (
    Evaluated,
    Trained,
    assign_site,
    calibrate_site,
    embed_site,
    fine_tune_site,
    judge_site,
    require_processor,
    train_site,
)
from federation.protocol import reasons
from federation.protocol.coarse_moments import RANGES
from federation.protocol.deployment import from_config
from federation.protocol.flat_weights import Arrays
from federation.protocol.half_precision import HALF, changes
from federation.protocol.handshake import answer as shake
from federation.protocol.metric_allowlist import EXAMPLES
from federation.protocol.reply_validation import decode, encode
from federation.protocol.simulated_sites import simulated_folders
from federation.protocol.site_labels import require_labels
from federation.protocol.study_config import Study
from federation.protocol.study_packages import allow_at_site, allow_in_run
from models.refusal import Refusal
from pipeline.site.folder import Site

Handler = Callable[[Message, Context], Message]
REFUSED, FAILED = 1001, 1002  # Flower requires a number; only the code in the text has a meaning
app = ClientApp()


def coded(handler: Handler) -> Handler:
    """Decorate a handler to reply with a code if it fails.

    Flower would send the exception's text to the server, and the text may contain a path or a patient's data. The full
    text goes to the site's own log.
    """

    @functools.wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        try:
            reply = handler(message, context)
            _log().info("done")
            return reply
        except Refusal as refusal:
            _log().error("%s %s", refusal, refusal.private)
            return Message(Error(REFUSED, refusal.code), reply_to=message)
        except Exception:
            _log().exception("the study's code failed")
            return Message(Error(FAILED, reasons.SITE_FAILED.code), reply_to=message)

    return wrapped


def site_folder(context: Context) -> Path:
    """Return the site's folder: this node's, or that of the site which this node simulates."""
    if simulated := simulated_folders():
        return simulated[int(context.node_config["partition-id"])]
    return Path(os.environ["FEDTHORAX_SITE_DIR"])


def _log() -> logging.Logger:
    """Return this process's logger, which writes only into the site's folder."""
    log = logging.getLogger("fedthorax.site")
    folder = os.environ.get("FEDTHORAX_SITE_DIR")
    if folder and not log.handlers:
        with suppress(OSError):  # the error's text holds the path, and would be sent to the server
            handler = logging.FileHandler(Path(folder) / "logs" / "client.log")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # otherwise Flower's own log would include it
    return log


def _study(context: Context) -> Study:
    """Return the study; the code of its packages may run from now on. Raises as `allow_at_site`."""
    study = Study.model_validate_json(str(context.run_config["study"]))
    if simulated_folders():
        if server := os.environ.get("FEDTHORAX_SERVER_DIR"):
            allow_in_run(study, Path(server) / "runs" / str(context.run_config["run"]))
    else:
        allow_at_site(study, site_folder(context))
    return study


def _opened(context: Context) -> tuple[Site, Study]:
    """Return the site and the study; the code of the study's packages may run from now on.

    Raises Refusal E_SITE_UNLABELLED, as a gateway does before the app receives a task, and those of `_study`.
    """
    site, study = Site.open(site_folder(context)), _study(context)
    require_labels(site.settings, pretrains=study.network.pretrains)
    return site, study


def _model(message: Message) -> tuple[Arrays, Arrays]:
    """Return the received weights (rounded if the study says so) and buffers."""
    records = message.content.array_records
    return decode(records["arrays"]), decode(records.get("buffers") or ArrayRecord())


def _config(message: Message) -> Mapping[str, Any]:
    return message.content.config_records["config"]


def _trained(message: Message, context: Context, result: Trained) -> Message:
    is_half = _study(context).wire.precision == HALF
    arrays = changes(result.arrays, _model(message)[0]) if is_half else result.arrays
    content = RecordDict({"arrays": encode(arrays)})
    if result.buffers:  # none with group norm
        content["buffers"] = encode(result.buffers)
    content["metrics"] = MetricRecord({**result.metrics, EXAMPLES: result.examples})
    return Message(content, reply_to=message)


def _evaluated(message: Message, result: Evaluated) -> Message:
    metrics = MetricRecord({**result.metrics, EXAMPLES: result.examples})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query("handshake")
@coded
def handshake(message: Message, context: Context) -> Message:
    """Describe this site, so that the study can check that all sites agree."""
    _log().info("task: handshake")
    site, study = _opened(context)
    require_processor(site, study)
    answer = ConfigRecord(dict(shake(site, study)))
    return Message(RecordDict({"site": answer}), reply_to=message)


@app.query("partition")
@coded
def partition(message: Message, context: Context) -> Message:
    """Report which simulated site this node runs. A real node has none, and its gateway refuses the question."""
    metrics = MetricRecord({"partition": int(context.node_config["partition-id"]), EXAMPLES: 1})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.train()
@coded
def train(message: Message, context: Context) -> Message:
    """Evaluate the model on the site's validation patients, then train it on the training patients."""
    round_number = int(str(_config(message)["server-round"]))
    _log().info("task: training for round %d", round_number)
    result = train_site(
        *_opened(context),
        *_model(message),
        round_number=round_number,
        run=str(context.run_config["run"]),
        # A simulated node has no gateway. A gateway charges a private round before it accepts the task.
        charged=not simulated_folders(),
    )
    return _trained(message, context, result)


@app.train("head")
@coded
def fine_tune(message: Message, context: Context) -> Message:
    """Fit the model's head again, on this site's patients only."""
    _log().info("task: fitting the head")
    return _trained(message, context, fine_tune_site(*_opened(context), *_model(message)))


@app.evaluate("calibrate")
@coded
def calibrate(message: Message, context: Context) -> Message:
    """Fit calibration and thresholds on the site's validation patients, and report the distance to typical scans."""
    _log().info("task: calibrating the model")
    typical = decode(message.content.array_records["typical"])
    return _evaluated(message, calibrate_site(*_opened(context), *_model(message), typical))


@app.evaluate("test")
@coded
def test(message: Message, context: Context) -> Message:
    """Evaluate the model on the site's test patients, with the received calibration and thresholds, if any."""
    _log().info("task: testing the model")
    deployed, audit = from_config(_config(message)), bool(_config(message).get("audit", False))
    result = judge_site(*_opened(context), *_model(message), deployed, audit=audit)
    return _evaluated(message, result)


@app.evaluate("embed")
@coded
def embed(message: Message, context: Context) -> Message:
    """Report means and variances of the model's features and of the appearance features of training patients."""
    _log().info("task: features of the training patients")
    features, appearance = embed_site(*_opened(context), *_model(message))
    content = RecordDict({"metrics": MetricRecord({EXAMPLES: features.patients})})
    for record, found in (("moments", features), ("looks", appearance)):
        arrays = {"mean": found.mean, "variance": found.variance}
        content[record] = encode({name: RANGES[name].rounded(array) for name, array in arrays.items()})
    return Message(content, reply_to=message)


@app.evaluate("assign")
@coded
def assign(message: Message, context: Context) -> Message:
    """Report to which sites the features of this site's test patients would be assigned."""
    _log().info("task: features of the test patients")
    discriminants = decode(message.content.array_records["probe"])["discriminants"]
    probed = int(str(_config(message)["probed"]))
    result = assign_site(*_opened(context), *_model(message), discriminants, probed)
    return _evaluated(message, result)
