"""`fedthorax node ...`: what hospital IT does."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.console import print_json, print_table, progress_bar, say

app = typer.Typer(help="Hospital IT: make, check, feed and run this hospital's node.", no_args_is_help=True)
SiteDir = Annotated[Path, typer.Argument(help="The site's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
StudyFile = Annotated[
    Path | None,
    typer.Option("--study", help="Prepare scans as this study file says, where it differs from the default."),
]


@app.command()
def init(
    site_dir: SiteDir,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            exists=True,
            file_okay=False,
            help="The hospital's files; a site.toml there is taken over.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="The site's name, where --from has no site.toml.")] = "my-hospital",
    server: Annotated[str, typer.Option(help="The study's server, host:port.")] = "",
    ca: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The certificate of the study's authority.")
    ] = None,
) -> None:
    """Make a site: settings, a pseudonym key, and a node key whose public half goes to the study's server."""
    from federation.certificates import create_node_key
    from pipeline.site import init_site, site_settings

    site = init_site(site_dir, site_settings(source, name=name, server=server))
    public = create_node_key(site.node_key)
    if ca is not None:
        shutil.copyfile(ca, site.ca_certificate)
    say(f"Made the site {site.name}. Edit {site.folder / 'site.toml'}, then run `fedthorax node check {site_dir}`.")
    say(f"To join a study, send {public} to its server's office (`fedthorax server enrol`).")


@app.command()
def check(
    site_dir: SiteDir,
    study: StudyFile = None,
    truth: Annotated[Path | None, typer.Option(help="truth.json of a synthetic hospital, to judge the check.")] = None,
    as_json: Json = False,
) -> None:
    """The doctor: what is wrong with this site's data, and how to mend it. Changes nothing in the cohort."""
    from federation.study import preprocessing_of
    from pipeline import check as doctor
    from pipeline.site import Site

    with progress_bar("examining series") as progress:
        result = doctor.check(Site.open(site_dir), preprocessing_of(study), progress, truth=truth)
    content = result.to_json()
    if as_json:
        print_json(content)
        return
    print_table(["environment", ""], [[k, v] for k, v in result.environment.items()])
    _print_findings(content)
    if result.verdict:
        v = result.verdict
        say(f"Planted defects: {v.planted}, found {v.found}; precision {v.precision:.3f}, recall {v.recall:.3f}.")


@app.command()
def ingest(site_dir: SiteDir, study: StudyFile = None, as_json: Json = False) -> None:
    """Bring the cohort up to date with the site's files; what is known is not read again."""
    from federation.study import preprocessing_of
    from pipeline.check import Checkup
    from pipeline.ingest import ingest as run
    from pipeline.site import Site

    site = Site.open(site_dir)
    with progress_bar("examining series") as progress:
        assessment = run(site, preprocessing_of(study), progress)
    content = Checkup({}, assessment, None).to_json()
    del content["environment"], content["verdict"]
    content["examined_now"] = assessment.examined_now
    if as_json:
        print_json(content)
        return
    _print_findings(content)
    say(f"Each refusal with its pseudonym: {site.cohort_folder / 'refusals.csv'}")


def _print_findings(content: dict[str, Any]) -> None:
    lines = [[f["code"], str(f["count"]), f["remedy"]] for f in content["findings"]]
    print_table(["finding", "count", "what to do"], lines)
    say(
        f"{content['series']} series; {content['patients']} patients accepted, {content['pcr_positive']} of them "
        f"PCR-positive, of those {content['severe_among_positive']} severe "
        f"({content['severe_known_among_positive']} known)."
    )


@app.command()
def status(site_dir: SiteDir, as_json: Json = False) -> None:
    """How many patients the cohort has, split by split, and which server this node belongs to."""
    from collections import Counter

    from pipeline.cohort import Cohort
    from pipeline.site import Site

    site = Site.open(site_dir)
    with Cohort(site) as cohort:
        patients = cohort.patients()
    content = {
        "site": site.name,
        "server": site.settings.server.address,
        "patients": len(patients),
        "splits": dict(Counter(p.split for p in patients)),
        "pcr_positive": sum(p.pcr_positive for p in patients),
    }
    if as_json:
        print_json(content)
    else:
        print_table(["", ""], [[k, str(v)] for k, v in content.items()], title=f"site {site.name}")


@app.command()
def find(
    site_dir: SiteDir, pseudonym: Annotated[str, typer.Argument(help="As refusals.csv and the cohort show it.")]
) -> None:
    """Whose pseudonym it is: the patient's folders, on this screen alone."""
    from pipeline.series import find_series
    from pipeline.site import Site

    site = Site.open(site_dir)
    series, _ = find_series(site.settings.ct.folder)
    owned = [s for s in series if site.pseudonym(s.patient_id) == pseudonym]
    for folder in sorted({s.files[0].parent for s in owned}):
        typer.echo(folder)
    say(f"{len(owned)} series of this patient.")


@app.command()
def start(site_dir: SiteDir) -> None:
    """Run this hospital's node until Ctrl-C. It dials the study's server; nothing here is reachable from outside."""
    from federation.node import start_node, wait_online
    from federation.reasons import NO_SERVER_SET
    from models.refusal import Refusal
    from pipeline.site import Site

    site = Site.open(site_dir)
    if not site.settings.server.address:
        raise Refusal(NO_SERVER_SET)
    with start_node(
        site.folder,
        server=site.settings.server.address,
        ca_certificate=site.ca_certificate,
        private_key=site.node_key,
        log=site.logs / "node.log",
    ) as node:
        wait_online(node)
        say(f"The node of {site.name} is online. Ctrl-C ends it. Its log: {site.logs / 'node.log'}")
        node.wait()
