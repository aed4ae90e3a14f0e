"""`fedthorax node ...`: the commands of hospital IT."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from federation.cli.apps import approve, apps, ledger, revoke
from federation.cli.backup import accept_restore, backup_site, restore_site
from federation.cli.console import counted, print_json, print_table, progress_bar, quoted, say
from federation.cli.node_encoders import approve_encoder, encode, encoders, revoke_encoder
from federation.cli.node_networks import approve_network, networks, revoke_network
from federation.cli.node_peers import approve_peers, peers, revoke_peers
from federation.cli.node_releases import approve_release, releases, revoke_release
from federation.cli.node_studies import approve_study, revoke_study, studies
from federation.cli.options import Json
from federation.cli.support import report_site
from federation.cli.upgrade import check_site, undo_site
from federation.cli.withdraw import decommission, withdraw
from models.refusal import Refusal

if TYPE_CHECKING:
    from pipeline.site.folder import Site
app = typer.Typer(
    help="Hospital IT: set up, check and run this hospital's node, and load its data.", no_args_is_help=True
)
SiteDir = Annotated[Path, typer.Argument(help="The site's folder.")]
StudyFile = Annotated[
    Path | None,
    typer.Option("--study", help="Preprocess scans with the settings of this study file instead of the defaults."),
]


def _open(site_dir: Path) -> "Site":
    """Open a site before anything is written into its folder, which may be a hospital's."""
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    site.require_made()
    return site


@app.command()
def init(
    site_dir: SiteDir,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            exists=True,
            file_okay=False,
            help="Folder of the hospital's files. A site.toml in it is used.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="The site's name, if --from has no site.toml.")] = "my-hospital",
    server: Annotated[str, typer.Option(help="The study's server, host:port.")] = "",
    ca: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Certificate of the study's authority.")
    ] = None,
    ct_only: Annotated[
        bool,
        typer.Option(
            "--ct-only", help="The hospital has chest CT only, no PCR results or outcomes, if --from has no site.toml."
        ),
    ] = False,
) -> None:
    """Create a site: settings, a pseudonym key and the node's key. `node join` then enrols it in a study."""
    from federation.enrolment.certificates import create_node_key
    from pipeline.doctor.reasons import CT_ONLY_USES
    from pipeline.site.folder import ADDRESS, NAME, init_site, site_settings

    if not re.fullmatch(NAME, name):
        says = "a site's name has up to 40 of a to z, digits and hyphens, and does not begin with a hyphen"
        raise typer.BadParameter(says, param_hint="--name")
    if not re.fullmatch(ADDRESS, server):
        raise typer.BadParameter("give host:port, such as study.example.org:8443", param_hint="--server")
    site = init_site(site_dir, site_settings(source, name=name, server=server, ct_only=ct_only))
    create_node_key(site.node_key)
    if ca is not None and not (site.ca_certificate.exists() and ca.samefile(site.ca_certificate)):
        site.ca_certificate.parent.mkdir(parents=True, exist_ok=True)  # site.toml of --from may name another folder
        shutil.copyfile(ca, site.ca_certificate)
    say(
        f"Created the site {site.name}. Edit {site.folder / 'site.toml'}, then run "
        f"`fedthorax node check {quoted(site_dir)}`."
    )
    if not site.settings.has_labels:
        say(f"This site has chest CT only. {CT_ONLY_USES}")
    say(f"To join a study, ask the study office for a code: `fedthorax node join {quoted(site_dir)} CODE`.")


@app.command()
def join(
    site_dir: SiteDir,
    code: Annotated[str, typer.Argument(help="The one-time code from the study's office.")],
    name: Annotated[
        str, typer.Option("--as", help="The site's name in the study, if it is not the name in site.toml.")
    ] = "",
) -> None:
    """Join a study: verify its server with the code, and get the node's certificate."""
    from federation.enrolment.join import join as enter

    site = _open(site_dir)
    known_as = enter(site, code, name=name)
    if known_as != site.name:
        say(f"Note: site.toml calls this site {site.name}. Tell the study's office if {known_as} is another hospital.")
    say(f"Joined; the study knows this site as {known_as}. Run its node: `fedthorax node start {quoted(site_dir)}`.")


@app.command()
def renew(site_dir: SiteDir) -> None:
    """Renew the node's certificate before it expires."""
    from federation.enrolment.join import renew as prolong

    say(f"The node's certificate is valid until {prolong(_open(site_dir)):%Y-%m-%d}.")


@app.command()
def move(
    site_dir: SiteDir, address: Annotated[str, typer.Argument(help="New address of the study's server, host:port.")]
) -> None:
    """Use a new server address, after a check that the server there belongs to the same study."""
    from federation.enrolment.join import move as dial_elsewhere

    dial_elsewhere(_open(site_dir), address)
    say(f"It is the study's server, and it knows this site. Restart the node to connect to {address}.")


@app.command()
def check(
    site_dir: SiteDir,
    study: StudyFile = None,
    truth: Annotated[
        Path | None, typer.Option(help="truth.json of a synthetic hospital, to measure the check.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="File of the page that may be mailed. Default: SITE_DIR/check.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this site: its problems and how to fix them. It fetches no scans and does not change the cohort."""
    site = _open(site_dir)  # before the imports that take seconds
    from federation.approval import peer_checks
    from federation.cli.doctor_screen import show_checkup
    from federation.enrolment import standing
    from federation.node import sandbox
    from federation.protocol.study_config import preprocessing_of
    from pipeline.doctor import checkup as doctor
    from pipeline.doctor.page import write_page
    from pipeline.training import privacy_budget

    with progress_bar("examining series") as progress:
        gpu = sandbox.gpu_line(site)
        of_sandbox = [sandbox.line(site), *([gpu] if gpu else [])]
        more = [standing.line(site), *of_sandbox, privacy_budget.line(site), *peer_checks.lines(site)]
        result = doctor.check(site, preprocessing_of(study), progress, truth=truth, more=more)
    page = page or site.folder / "check.html"
    write_page(result, page)
    if as_json:
        print_json(result.to_json())
    else:
        show_checkup(result)
        say(f"Page without patient names, which may be mailed: {page}")
    raise typer.Exit(int(result.is_refused))


@app.command()
def pull(site_dir: SiteDir, as_json: Json = False) -> None:
    """Fetch new series from the PACS, without patient identifiers, and records from the FHIR or OMOP database."""
    from models.refusal import Refusal
    from pipeline.pacs.reasons import NO_PACS

    site = _open(site_dir)
    if site.settings.pacs is None and site.settings.fhir is None and site.settings.omop is None:
        raise Refusal(NO_PACS)
    content = {**(_pull(site) or {}), "fhir": _fetch(site), "omop": _fetch_omop(site)}
    if as_json:
        print_json(content)


def _fetch(site: "Site") -> dict[str, Any] | None:
    """Fetch from the FHIR server, if there is one, print a summary and return it as JSON."""
    from pipeline.feeds.fhir_fetch import fetch

    if site.settings.fhir is None:
        return None
    report = fetch(site)
    say(f"FHIR server: {report.resources} resources are new or changed ({report.megabytes} MB).")
    return report.to_json()


def _fetch_omop(site: "Site") -> dict[str, Any] | None:
    """Fetch from the OMOP database, if there is one, print a summary and return it as JSON."""
    from pipeline.feeds.omop_fetch import fetch_omop

    if site.settings.omop is None:
        return None
    patients = fetch_omop(site)
    say(f"OMOP database: it knows {patients} of the patients with laboratory results.")
    return {"patients": patients}


def _pull(site: "Site") -> dict[str, Any] | None:
    """Fetch from the PACS, if there is one, print a summary and return it as JSON."""
    from pipeline.pacs.pull import pull as run

    if site.settings.pacs is None:
        return None

    with progress_bar("fetching series") as progress:
        report = run(site, progress)
    content = report.to_json()
    say(
        f"PACS: {content['series']} series match; {content['fetched_now']} fetched now "
        f"({content['megabytes']:.0f} MB), {content['already']} fetched before, {content['failed']} failed."
    )
    return content


@app.command()
def ingest(site_dir: SiteDir, study: StudyFile = None, as_json: Json = False) -> None:
    """Update the cohort from PACS, databases and files. Files that were ingested before are not read again."""
    site = _open(site_dir)  # before the imports that take seconds
    from federation.cli.doctor_screen import show_waterfall
    from federation.node.site_encoding import encode_site
    from federation.protocol.study_config import preprocessing_of
    from pipeline.cohort.ingest import ingest as run

    pulled, fetched, of_omop = _pull(site), _fetch(site), _fetch_omop(site)
    with progress_bar("examining series") as progress:
        assessment = run(site, preprocessing_of(study), progress)
    encoded = encode_site(site, progress_bar)
    if as_json:
        content = {**assessment.to_json(), "examined_now": assessment.examined_now, "encoded": encoded}
        print_json({**content, "pulled": pulled, "fhir": fetched, "omop": of_omop})
        return
    print_table(
        ["finding", "count", "what to do"],
        [[reason.code, str(count), reason.remedy] for reason, count in assessment.counts],
    )
    for text in assessment.fewer_records:
        say(f"Warning: {text}.")
    show_waterfall(assessment)
    say(f"Each refusal with its pseudonym: {site.cohort_folder / 'refusals.csv'}")


@app.command()
def listen(site_dir: SiteDir) -> None:
    """Receive laboratory results (HL7 v2 over MLLP) until Ctrl-C, as laboratory.listener in site.toml says."""
    import logging

    from pipeline.feeds.result_listener import listen as run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(_open(site_dir), say)


@app.command()
def status(site_dir: SiteDir, as_json: Json = False) -> None:
    """Show whether the node runs, its last activity, and how many patients the cohort has."""
    from federation.node.start import node_status
    from pipeline.doctor.reasons import CT_ONLY_USES

    content = node_status(_open(site_dir))
    if as_json:
        print_json(content)
    else:
        content["masked_rounds"] = "\n".join(content["masked_rounds"])
        content["labels"] = "yes" if content.pop("has_labels") else f"none: chest CT only. {CT_ONLY_USES}"
        shown = {key: value for key, value in content.items() if key != "site" and value not in (None, "")}
        print_table(
            ["", ""], [[k.replace("_", " "), str(v)] for k, v in shown.items()], title=f"site {content['site']}"
        )


@app.command()
def find(
    site_dir: SiteDir, pseudonym: Annotated[str, typer.Argument(help="As refusals.csv and the cohort show it.")]
) -> None:
    """Resolve a pseudonym to the patient's folders or PACS accession numbers. Shown on this screen only.

    A patient without a CT is found in the laboratory's, outcome or label files.
    """
    from pipeline.imaging.readers import find_scans
    from pipeline.pacs.pacs import open_pacs
    from pipeline.pacs.pull import study_query
    from pipeline.site.site_data import identifiers_in_records

    site = _open(site_dir)
    if site.settings.pacs is not None:
        with open_pacs(site) as pacs:
            remote = pacs.find(study_query(site, site.settings.pacs))
        places = {
            f"patient {r.patient_id}, accession {r.accession}"
            for r in remote
            if site.pseudonym(r.patient_id) == pseudonym
        }
    else:
        series, _ = find_scans(site.ct_folder)
        places = {str(s.files[0].parent) for s in series if site.pseudonym(s.patient_id) == pseudonym}
    rows: set[str] = set()
    try:
        for table, identifiers in identifiers_in_records(site).items():
            found = (identifier for identifier in identifiers if site.pseudonym(identifier) == pseudonym)
            rows |= {f"patient {identifier}, in the file of {table}" for identifier in found}
    except Refusal as refusal:  # what was found among the scans is shown nevertheless
        say(f"{refusal}")
    for place in [*sorted(places), *sorted(rows)]:
        typer.echo(place)
    if not places and not rows:
        say("No patient was found with this pseudonym. Check its 16 digits, and that they are of this site.")
        raise typer.Exit(1)
    examinations = counted(len(places), "examination or folder", "examinations or folders")
    say(f"{examinations} of this patient; found in {counted(len(rows), 'table')}.")


@app.command()
def start(
    site_dir: SiteDir,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Print each event as one JSON object a line.")
    ] = False,
) -> None:
    """Run this hospital's node until Ctrl-C. It connects to the study's server and accepts no connections itself."""
    from federation.node.start import run_node
    from federation.system.stop_limit import STOP_SECONDS, ending_within

    with ending_within(STOP_SECONDS):
        run_node(_open(site_dir), typer.echo if json_lines else say, json_lines=json_lines)


for command in (
    apps,
    approve,
    revoke,
    studies,
    approve_study,
    revoke_study,
    networks,
    approve_network,
    revoke_network,
    encoders,
    approve_encoder,
    revoke_encoder,
    encode,
    releases,
    approve_release,
    peers,
    approve_peers,
    revoke_peers,
    revoke_release,
    ledger,
    accept_restore,
    withdraw,
    decommission,
):
    app.command()(command)
app.command("backup")(backup_site)
app.command("restore")(restore_site)
app.command("support-report")(report_site)
app.command("upgrade-check")(check_site)
app.command("upgrade-undo")(undo_site)
