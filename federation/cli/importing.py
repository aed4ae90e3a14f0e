"""`fedthorax import ...`: turn public data sets into sites, to try a federation on real scans."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from federation.cli.console import print_json, print_table, progress_bar, quoted, say
from federation.cli.options import Json

if TYPE_CHECKING:
    from pipeline.datasets.common import Imported

app = typer.Typer(
    help="Make sites from a public data set as published. Its files are neither copied nor changed.",
    no_args_is_help=True,
)
DataDir = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The unpacked data set.")]
OutDir = Annotated[Path, typer.Argument(help="A new folder for the sites.")]


class Split(StrEnum):
    equal = "equal"
    skewed = "skewed"


@app.command()
def stoic2021(
    folder: DataDir,
    out: OutDir,
    sites: Annotated[int, typer.Option(min=1, max=100, help="Number of sites.")] = 3,
    split: Annotated[
        Split, typer.Option(help="equal: patients assigned at random; skewed: by age and slice spacing.")
    ] = Split.equal,
    seed: Annotated[int, typer.Option(help="The same seed gives the same split.")] = 1,
    as_json: Json = False,
) -> None:
    """STOIC2021: CT, PCR and severity of 2000 patients. It names no hospitals, so --split assigns them to sites."""
    from pipeline.datasets.stoic2021 import import_stoic2021

    with progress_bar("sites") as progress:
        made = import_stoic2021(folder, out, sites=sites, split=split.value, seed=seed, progress=progress)
    _finish(made, out, as_json)


@app.command()
def nccid(folder: DataDir, out: OutDir, as_json: Json = False) -> None:
    """NCCID: one site for each submitting centre. Needs NHSX's access agreement."""
    from pipeline.datasets.nccid import import_nccid

    with progress_bar("patients") as progress:
        made = import_nccid(folder, out, progress=progress)
    _finish(made, out, as_json)


@app.command()
def mosmed(folder: DataDir, out: OutDir, as_json: Json = False) -> None:
    """MosMedData: one site without PCR. Its severity is the extent of findings on CT."""
    from pipeline.datasets.mosmed import import_mosmed

    with progress_bar("sites") as progress:
        made = import_mosmed(folder, out, progress=progress)
    _finish(made, out, as_json)


def _finish(made: "Imported", out: Path, as_json: bool) -> None:
    """Create a node key for each site, as `node init` does, and show the sites and what was left out."""
    from federation.enrolment.certificates import create_node_key
    from pipeline.site.folder import Site

    for name in made.sites:
        create_node_key(Site.open(out / name).node_key)
    if as_json:
        left_out = [{"code": r.code, "count": count, "says": r.says, "remedy": r.remedy} for r, count in made.counts]
        print_json({"sites": made.sites, "left_out": left_out})
        return
    print_table(["site", "patients"], [[name, str(patients)] for name, patients in made.sites.items()])
    if made.findings:
        print_table(["left out", "count", "reason"], [[r.code, str(count), r.says] for r, count in made.counts])
    say(f"Each site is a folder under {out}. Next: `fedthorax node ingest {quoted(out)}/SITE`.")
