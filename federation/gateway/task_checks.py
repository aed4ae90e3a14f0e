"""Check a task before the node receives any of it: approved code, a study within limits, and the study's model."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, cast

from federation.approval import fab
from federation.approval import reasons as approval_reasons
from federation.flower.messages import ObjectTree, Run, iterate_object_tree, user_config_from_proto
from federation.gateway import reasons
from federation.gateway.batch_norm_bounds import steps_of_round
from federation.gateway.flower_objects import Content
from federation.gateway.schema import Schema, Specs
from federation.gateway.spool import PRETRAINING_ROUNDS
from federation.ledger.chain import EMPTY, Head
from federation.protocol import reasons as protocol_reasons
from federation.protocol.masked_replies import ANSWERED
from federation.protocol.metric_allowlist import FIGURES, HANDSHAKE, LABELS, MAX_PROBED, Kind
from federation.protocol.reply_validation import CALIBRATIONS
from federation.protocol.site_labels import require_labels
from federation.system.digests import SHA256
from models.refusal import Reason, Refusal
from pipeline.site.folder import GatewayTable, SiteSettings

MAX_ROUND = 100_000
PRETRAINING: tuple[Kind, ...] = (HANDSHAKE, "train")  # what a pretraining may ask for
SPARE_OBJECTS = 16  # a message may have this many objects more than it needs; its records are checked afterwards

_RUN_NAME = re.compile(r"[a-z0-9-]{1,80}")
_DEPTH = 5  # message, record dict, record, array, chunk
_WITHOUT_ARRAYS = 3  # message, record dict, one record of values
# The settings that Flower's strategies and our server send with a task.
_CONFIG = {"server-round", "proximal-mu", "ledger-head", "ledger-lines"}
# Additional settings of a test: the calibration, and the thresholds on raw logits.
_DEPLOYED = {f"{what}_{label}" for what in ("slope", "intercept", "rule_out", "rule_in") for label in LABELS}


def run_config(app: bytes, run: Run) -> tuple[str, str]:
    """Return a run's study (JSON) and name: the values it was started with, over the app's preset values.

    This does the same as flwr.common.config.get_fused_config_from_fab. Importing that module would load the command
    line (5 MB). Raises Refusal E_RUN_CONFIG.
    """
    try:
        preset = fab.read(app).config["tool"]["flwr"]["app"].get("config", {})
        config = {**preset, **user_config_from_proto(run.override_config)}
    except Exception as error:  # whatever a parser raises on a malformed app
        raise Refusal(approval_reasons.RUN_CONFIG, private=f"{type(error).__name__}: {error}") from error
    study, name = config.get("study"), config.get("run")
    keys = set(preset) == set(config) == {"study", "run"}  # Flower accepts only keys that the app presets
    texts = all(isinstance(value, str) for value in preset.values())
    if not (keys and texts and isinstance(study, str) and _RUN_NAME.fullmatch(str(name))):
        raise Refusal(approval_reasons.RUN_CONFIG, private="keys other than study and run, or an invalid name")
    return study, str(name)


def check_bounds(kind: Kind, schema: Schema, settings: SiteSettings, train_patients: int) -> None:
    """Check that the site takes part in such a study and answers such a question.

    Raises Refusal: E_SITE_UNLABELLED, E_TASK_KIND, E_SITE_LIMIT, E_SITE_LEAST, E_AUGMENTATION, E_PRIVACY_REQUIRED,
    E_PRIVACY_KIND, E_EMBEDDINGS, E_SECAGG_REQUIRED, E_SECAGG_KIND.
    """
    require_labels(settings, pretrains=schema.pretrains)
    limits = settings.gateway
    if schema.pretrains:
        _check_pretraining(kind, schema, limits)
    for what, asked, allowed in (
        ("local epochs in a round", _epochs(schema, train_patients), limits.max_local_epochs),
        ("scans in a batch", schema.batch_size, limits.max_batch_size),
    ):
        if asked > allowed:
            raise Refusal(reasons.SITE_LIMIT, what=what, asked=asked, allowed=allowed)
    if schema.private_round is None:  # noise covers what few patients or steps reveal
        _check_mixing(schema, limits, train_patients)
    if limits.require_secure_aggregation and not schema.secure:
        raise Refusal(reasons.SECAGG_REQUIRED)
    if schema.summed and kind not in ANSWERED:
        raise Refusal(reasons.SECAGG_KIND)
    if settings.privacy.required and schema.private_round is None:
        raise Refusal(reasons.PRIVACY_REQUIRED)
    # Replies of these kinds describe the training patients without noise, and the budget does not cover them.
    if schema.private_round is not None and kind in ("train.head", "evaluate.embed"):
        raise Refusal(reasons.PRIVACY_KIND)
    if kind == "evaluate.embed" and not limits.embedding_statistics:
        raise Refusal(protocol_reasons.EMBEDDINGS)


def _check_pretraining(kind: Kind, schema: Schema, limits: GatewayTable) -> None:
    """Check that the site pretrains at all, and that only rounds of training are asked for: no label is learnt.

    Raises Refusal: E_TASK_KIND, E_SITE_LIMIT.
    """
    if kind not in PRETRAINING:
        raise Refusal(reasons.TASK_KIND, private=f"{kind} in a pretraining")
    asked, allowed = schema.rounds, limits.max_pretraining_rounds_a_month
    if asked > allowed:
        raise Refusal(reasons.SITE_LIMIT, what=PRETRAINING_ROUNDS, asked=asked, allowed=allowed)


def _check_mixing(schema: Schema, limits: GatewayTable, train_patients: int) -> None:
    """Check that a round's update combines enough patients and steps. Raises Refusal: E_SITE_LEAST, E_AUGMENTATION."""
    steps = steps_of_round(
        train_patients, batch_size=schema.batch_size, epochs=schema.local_epochs, steps=schema.local_steps
    )
    for what, asked, least in (
        ("patients in a training step", schema.batch_size, limits.min_batch_size),
        ("training steps", steps, limits.min_local_steps),
    ):
        if asked < least:
            raise Refusal(reasons.SITE_LEAST, what=what, asked=asked, allowed=least)
    if limits.require_augmentation and not schema.augment:
        raise Refusal(reasons.AUGMENTATION)


def _epochs(schema: Schema, train_patients: int) -> int:
    """Return how often a round goes through the site's patients; a partial epoch counts as one."""
    if not schema.local_steps:
        return schema.local_epochs
    steps_an_epoch = max(1, math.ceil(train_patients / schema.batch_size))
    return math.ceil(schema.local_steps / steps_an_epoch)


def task_kind(message_type: str) -> Kind:
    """Return the kind of task of a message type. Raises Refusal E_TASK_KIND."""
    if message_type not in FIGURES:
        raise Refusal(reasons.TASK_KIND, private=repr(message_type[:80]))
    return cast(Kind, message_type)


def max_objects(arrays: Mapping[str, Specs]) -> int:
    """Return the maximum number of objects in a message with these array records and one other record."""
    records = sum(1 + sum(1 + len(list(spec.chunk_bytes())) for spec in specs.values()) for specs in arrays.values())
    return _WITHOUT_ARRAYS + records + SPARE_OBJECTS


def small_objects(tree: ObjectTree, damaged: Reason, *, most: int) -> list[str]:
    """Return the ids of a message's objects except the arrays' chunks, the message first.

    Raises Refusal `damaged` if the tree is not that of a message, or has more than `most` objects.
    """
    small: list[str] = []
    level, count = [tree], 1
    for depth in range(_DEPTH):
        count += sum(len(node.children) for node in level)  # before the next list is built
        if count > most or not all(SHA256.fullmatch(node.object_id) for node in level):
            raise Refusal(damaged, private="too many objects, or an id that is not a SHA-256")
        if depth < _DEPTH - 1:
            small += [node.object_id for node in level]
        level = [child for node in level for child in node.children]
    if level:
        raise Refusal(damaged, private="a chunk contains objects")
    return list(dict.fromkeys(small))


def tree_ids(tree: ObjectTree) -> set[str]:
    return {node.object_id for node in iterate_object_tree(tree)}


def check_content(content: Content, ids: set[str], expected: Mapping[str, Specs], kind: Kind) -> None:
    """Require exactly the `expected` arrays and the round's settings; a test may also hold the sites' calibrations.

    `ids`: the ids of all objects that the node would fetch. Raises Refusal: E_TASK_RECORDS, E_TASK_DAMAGED.
    """
    needed = {name for name, specs in expected.items() if specs}
    configs = set(content.configs) - ({CALIBRATIONS} if kind == "evaluate.test" else set())
    if content.metrics or configs != {"config"} or not needed <= set(content.arrays) <= set(expected):
        raise Refusal(reasons.TASK_RECORDS, private="unexpected or missing records")
    for record, heads in content.arrays.items():
        specs = expected[record]
        if set(heads) != set(specs) or not all(spec.fits(heads[name]) for name, spec in specs.items()):
            raise Refusal(reasons.TASK_RECORDS, private=f"unexpected or missing arrays in {record}")
    if ids != content.ids:
        raise Refusal(reasons.TASK_DAMAGED, private="some objects belong to no record")


def expected_chunks(content: Content, expected: Mapping[str, Specs]) -> dict[str, tuple[int, bytes]]:
    """Return for each chunk of the arrays, by id, the length of its data and the bytes it must begin with.

    An id stands for one content, so both must be the same wherever it occurs. Raises Refusal E_TASK_DAMAGED.
    """
    chunks: dict[str, tuple[int, bytes]] = {}
    for record, heads in content.arrays.items():
        for name, head in heads.items():
            spec = expected[record][name]
            for number, (chunk, length) in enumerate(zip(head.chunks, spec.chunk_bytes(), strict=True)):
                described = (length, b"" if number else spec.header)
                if chunks.setdefault(chunk, described) != described:
                    raise Refusal(reasons.TASK_DAMAGED, private="one chunk in two places that must differ")
    return chunks


def check_config(config: Mapping[str, Any], kind: Kind) -> tuple[int, Head]:
    """Return the round's number, and the ledger head that the server last received. Raises Refusal E_TASK_RECORDS."""
    number, mu = config.get("server-round"), config.get("proximal-mu", 0.0)
    digest, lines = config.get("ledger-head", ""), config.get("ledger-lines", 0)
    own = {name: value for name, value in config.items() if name not in _CONFIG}
    good = (
        type(number) is int
        and 0 <= number <= MAX_ROUND
        and type(mu) in (int, float)
        and 0 <= mu < math.inf
        and type(lines) is int
        and isinstance(digest, str)
        and ((lines > 0 and SHA256.fullmatch(digest)) or (lines, digest) == (EMPTY.lines, EMPTY.sha256))
        and _are_own(own, kind)
    )
    if not good:
        raise Refusal(reasons.TASK_RECORDS, private="unexpected round settings: " + json.dumps(sorted(config))[:500])
    return cast(int, number), Head(cast(int, lines), str(digest))


def deployed_settings(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the calibration and the thresholds in a test's settings."""
    return {name: value for name, value in config.items() if name in _DEPLOYED}


def check_without_thresholds(content: Content, schema: Schema) -> None:
    """Check that a study with summed answers asks for no figures at thresholds: the counts answer for all of them.

    Raises Refusal E_SECAGG_THRESHOLDS.
    """
    if schema.summed and (CALIBRATIONS in content.configs or deployed_settings(content.configs["config"])):
        raise Refusal(reasons.SECAGG_THRESHOLDS)


def check_audit(content: Content, schema: Schema) -> None:
    """Check that the server asks for the figures of the shortcut audit only where the study has one.

    Raises Refusal E_AUDIT_KIND.
    """
    if content.configs["config"].get("audit") and not schema.audits:
        raise Refusal(reasons.AUDIT_KIND)


def _are_own(settings: Mapping[str, Any], kind: Kind) -> bool:
    """Tell whether these are valid settings that only messages of this kind have."""
    if kind == "evaluate.test":
        numbers = {name: value for name, value in settings.items() if name != "audit"}
        audit_is_bool = type(settings.get("audit", False)) is bool
        are_numbers = all(type(value) is float and math.isfinite(value) for value in numbers.values())
        return set(numbers) <= _DEPLOYED and are_numbers and audit_is_bool
    if kind == "evaluate.assign":
        probed = settings.get("probed")
        return set(settings) == {"probed"} and type(probed) is int and 2 <= probed <= MAX_PROBED
    return not settings
