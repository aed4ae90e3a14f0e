"""`fedthorax study init`: write a study file from a preset, or for a number of hospitals."""

import json
import os
import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli import reasons
from federation.cli.console import quoted, say
from models.refusal import Refusal
from pipeline.system.atomic_files import write_atomically

if TYPE_CHECKING:
    from federation.protocol.protection import Protection
    from federation.protocol.study_config import Study

TEMPLATE = "study"
MAX_SITES = 1000
PAGE, SIZES_PAGE = "docs/choosing-protection.md", "docs/study-sizes.md"
_FIRST_TABLE = "[study]\n"


def new_file(typed: str) -> Path:
    """Return the path of a file that can be written. Raises typer.BadParameter."""
    path = Path(typed)
    if typed.endswith("/") or path.is_dir():
        raise typer.BadParameter("this is a folder. Name the file in it, such as study.toml.")
    if not path.parent.is_dir():
        raise typer.BadParameter("the folder of this file does not exist. Create it first.")
    return path


def init(
    study_file: Annotated[Path, typer.Argument(parser=new_file, help="The file to write.")],
    preset: Annotated[
        list[str] | None,
        typer.Option(
            help="The preset to start from. Twice: a purpose and a size. A wrong name lists the presets.",
            show_default=TEMPLATE,
        ),
    ] = None,
    sites: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_SITES,
            help="The number of hospitals. Sets sites and quorum and, without a purpose, the recommended protection.",
        ),
    ] = None,
) -> None:
    """Write a new study file: the template that explains every key, or a preset for one purpose, one size, or both."""
    import configs

    folder = Path(configs.__file__).parent
    known = {path.stem: path for path in [folder / "study.toml", *sorted((folder / "presets").glob("*.toml"))]}
    purpose, size = _purpose_and_size(preset or (), known)
    if os.path.lexists(study_file):  # also a link to nothing
        raise Refusal(reasons.STUDY_EXISTS, file=study_file.name)
    text = known[purpose or size or TEMPLATE].read_text("utf-8")
    if purpose and size:
        text = _at_size(text, purpose, size)
    says: list[str] = []
    if sites is not None:
        text, says = _for_sites(text, sites, purpose) if purpose else _protected(text, sites, size)
    write_atomically(study_file, text.encode())
    say(f"Wrote {study_file}. Review it, then run `fedthorax study run {quoted(study_file)}`")
    for line in (*says, *_of_size(text, size, study_file), *_beyond_defaults(text)):
        say(line)


def _purpose_and_size(names: Sequence[str], known: Collection[str]) -> tuple[str, str]:
    """Return the preset of a purpose and the size that were chosen; "" for none. Raises typer.BadParameter."""
    from configs import SIZES

    if not set(names) <= set(known):
        raise typer.BadParameter(f"the presets are {', '.join(known)}", param_hint="--preset")
    chosen = list(dict.fromkeys(names))
    sizes, purposes = ([name for name in chosen if (name in SIZES) == is_size] for is_size in (True, False))
    for several, what in ((sizes, "sizes"), (purposes, "purposes")):
        if len(several) > 1:
            raise typer.BadParameter(
                f"{' and '.join(several)} are both {what}, and a study has one. A purpose can be combined with a size: "
                f"{', '.join(SIZES)}",
                param_hint="--preset",
            )
    return "".join(purposes), "".join(sizes)


def _at_size(text: str, purpose: str, size: str) -> str:
    """Return the preset of a purpose with the preprocessing of a size."""
    from configs import preprocessing_of_size
    from models.settings import with_value

    for key, value in reversed(preprocessing_of_size(size).items()):  # missing keys are added at the head of the table
        text = with_value(text, "preprocessing", key, json.dumps(value))
    note = f"# `study init` wrote the preset {purpose} at the size {size}; {SIZES_PAGE} says what it costs.\n"
    return text.replace(_FIRST_TABLE, note + _FIRST_TABLE, 1)


def _of_size(text: str, size: str, study_file: Path) -> list[str]:
    """Return what to tell about a study of a size: what each hospital does first, and the seed if it has masks."""
    if not size:
        return []
    says = [
        f"Each hospital prepares its scans in this size first: `fedthorax node ingest SITE_DIR --study "
        f"{quoted(study_file.name)}`. {SIZES_PAGE} says what {size} costs."
    ]
    if tomllib.loads(text).get("aggregation", {}).get("secure", False):
        says.append(
            "The size does not change the first model: if the hospitals had a masked run of this seed and network at "
            "another size, choose a new seed in the file."
        )
    return says


def _beyond_defaults(text: str) -> list[str]:
    """Return the warning that the runs of a study file ask for more than hospitals allow by default, if they do."""
    from federation.protocol.study_config import Study
    from federation.runs.site_demand import beyond_defaults

    study = Study.model_validate(tomllib.loads(text))
    warning = beyond_defaults([study] * max(1, len(study.study.seeds or ())))
    return [f"{warning}. {warning.remedy}"] if warning else []


def _for_sites(text: str, sites: int, preset: str) -> tuple[str, list[str]]:
    """Return a preset for this number of hospitals, and what to tell about it. Raises Refusal E_STUDY_SITES."""
    from federation.protocol.protection import fitting_quorum

    secure = tomllib.loads(text).get("aggregation", {}).get("secure", False)
    text = _with_sites(text, sites, fitting_quorum(sites, secure=secure))
    study = _checked(text, sites, f"the preset {preset}")
    return text, [_counts(study), f"{PAGE} says which protection fits how many hospitals."]


def _protected(text: str, sites: int, size: str) -> tuple[str, list[str]]:
    """Return the template, or a size, with the protection recommended for this number of hospitals, and why.

    Raises Refusal: E_FEW_HOSPITALS, E_STUDY_SITES.
    """
    from federation.protocol.protection import fitting_quorum, recommended
    from federation.protocol.study_config import LEAST_SECURE_SITES
    from models.settings import with_value

    if sites < LEAST_SECURE_SITES:
        raise Refusal(reasons.FEW_HOSPITALS)
    chosen = recommended(sites)
    text = _with_sites(text, sites, fitting_quorum(sites, secure=chosen.secure))
    if chosen.secure:
        rounds = tomllib.loads(text)["study"]["rounds"] + 1  # the last one only judges the model
        values = {
            ("study", "rounds"): rounds,
            ("strategy", "name"): f'"{chosen.strategy}"',
            ("aggregation", "secure"): "true",
            ("aggregation", "summed_answers"): "false",  # included
            ("aggregation", "groups"): chosen.groups,
        }
        for (table, key), value in values.items():
            text = with_value(text, table, key, str(value))
        changed = "sites, quorum, rounds, the strategy and [aggregation]"
    else:
        changed = "sites and quorum"
    note = f"# `study init --sites {sites}` set {changed}, as {PAGE} recommends.\n"
    text = text.replace(_FIRST_TABLE, note + _FIRST_TABLE, 1)
    study = _checked(text, sites, "the recommended protection")
    return text, [_why(chosen, sites, size), _counts(study)]


def _with_sites(text: str, sites: int, quorum: int) -> str:
    from models.settings import with_value

    return with_value(with_value(text, "study", "sites", str(sites)), "study", "quorum", str(quorum))


def _checked(text: str, sites: int, what: str) -> "Study":
    """Return the study. Raises Refusal E_STUDY_SITES if it cannot have so many hospitals."""
    from pydantic import ValidationError

    from federation.protocol.study_config import Study

    try:
        return Study.model_validate(tomllib.loads(text))
    except ValidationError as error:
        problems = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors(include_url=False))
        raise Refusal(reasons.STUDY_SITES, what=what, sites=sites, problems=problems) from error


def _counts(study: "Study") -> str:
    """Return in plain words when a round counts."""
    table = study.study
    says = f"sites = {table.sites}, quorum = {table.quorum}: a round with fewer valid replies is lost."
    if table.quorum == 2:
        says += " In a round of two nobody can tell which one is hostile"
        says += "; set quorum = 3 to lose such rounds." if table.sites == 3 else "."
    return says


def _why(chosen: "Protection", sites: int, size: str) -> str:
    """Return in plain words what was chosen, why, and what else there is."""
    presets = f"--preset masked --preset {size}" if size else "--preset masked"
    distrust = f"If the hospitals do not trust the server, use `{presets} --sites {sites}`"
    if not chosen.secure:
        return (
            f"Protection for {sites} hospitals: {chosen.strategy}. The server sees each hospital's update, which it "
            "needs to stop a hostile or faulty hospital, and of their figures and answers only sums. "
            f"{distrust}: it then learns only sums of the updates as well. See {PAGE}."
        )
    if not chosen.groups:
        return (
            f"Protection for {sites} hospitals: one masked sum. The server learns the sum of the updates and no single "
            "one, even if it cheats, and one hostile hospital of so many costs little. If a hospital may have changed "
            f"its gateway, set groups = 3 in the file. See {PAGE}."
        )
    return (
        f"Protection for {sites} hospitals: masked sums of {chosen.groups} groups, and their median. The server learns "
        f"no single update, and one hospital with a changed gateway cannot spoil the model. {distrust}: it then learns "
        f"only one sum of all. See {PAGE}."
    )
