"""What a site does for a study: train on its cohort for a round, evaluate the final model. Thin: see `local`."""

import functools
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from federation import reasons
from federation.rounds.local import evaluate_site, train_site
from federation.rounds.replies import decode, encode
from federation.study import Study
from models.refusal import Refusal
from pipeline.site import Site

Handler = Callable[[Message, Context], Message]
SIMULATED = "FEDTHORAX_SIMULATED_SITES"
REFUSED, FAILED = 1001, 1002  # Flower wants a number; the code in the text is what counts
app = ClientApp()


def coded(handler: Handler) -> Handler:
    """Answer with a code where `handler` fails.

    Flower would send the exception's text to the server as it is, and that text may hold a path or a patient.
    The full text goes to the site's own log.
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
    """The site's folder: of this node, or the one that this simulated node plays."""
    simulated = os.environ.get(SIMULATED)
    if simulated:
        return Path(simulated.split(os.pathsep)[int(context.node_config["partition-id"])])
    return Path(os.environ["FEDTHORAX_SITE_DIR"])


def _log() -> logging.Logger:
    """A log that stays in the site's folder, of this process alone."""
    log = logging.getLogger("fedthorax.site")
    folder = os.environ.get("FEDTHORAX_SITE_DIR")
    if folder and not log.handlers:
        with suppress(OSError):  # its text holds the path, and would cross the network
            handler = logging.FileHandler(Path(folder) / "logs" / "client.log")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # Flower's own log would take it along
    return log


def _study(context: Context) -> Study:
    return Study.model_validate_json(str(context.run_config["study"]))


@app.train()
@coded
def train(message: Message, context: Context) -> Message:
    """Evaluate the global model on this site's validation patients, then train it on its own."""
    round_number = int(str(message.content.config_records["config"]["server-round"]))
    _log().info("training for round %d", round_number)
    records = message.content.array_records
    result = train_site(
        Site.open(site_folder(context)),
        _study(context),
        decode(records["arrays"]),
        decode(records.get("buffers") or ArrayRecord()),
        round_number=round_number,
        run=str(context.run_config["run"]),
        # Of a simulated node there is no gateway, which else charges a private round before it lets the task in.
        charged=SIMULATED not in os.environ,
    )
    content = RecordDict({"arrays": encode(result.arrays)})
    if result.buffers:  # with group norm there are none
        content["buffers"] = encode(result.buffers)
    content["metrics"] = MetricRecord({**result.metrics, "num-examples": result.examples})
    return Message(content, reply_to=message)


@app.evaluate()
@coded
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the final model on this site's test patients and fit its calibration."""
    _log().info("evaluating the final model")
    records = message.content.array_records
    result = evaluate_site(
        Site.open(site_folder(context)),
        _study(context),
        decode(records["arrays"]),
        decode(records.get("buffers") or ArrayRecord()),
    )
    metrics = MetricRecord({**result.metrics, "num-examples": result.examples})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
