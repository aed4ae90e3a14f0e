"""`fedthorax node withdraw` and `node decommission`: delete one patient's data, or all of them."""

from dataclasses import astuple
from pathlib import Path
from typing import Annotated

import typer

from federation.cli.console import counted, say
from federation.cli.reasons import WITHDRAW_FILE
from models.refusal import Refusal


def withdraw(
    site_dir: Annotated[Path, typer.Argument(help="The site's folder.")],
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Patient identifiers, one a line. Without it you are asked."),
    ] = None,
) -> None:
    """Remove a patient who withdraws: from the cohort, from fetched images, and from every later ingest.

    The identifier is never an argument: any user of this machine could read it in the list of processes, and the
    shell would keep it in its history. It is asked for twice, and not shown.
    """
    from federation.node.withdrawal import withdraw as remove
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    if file is None:
        identifiers = [typer.prompt("Patient identifier", hide_input=True, confirmation_prompt=True)]
    else:
        try:
            identifiers = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:  # it holds the file's content, so it must not be shown
            raise Refusal(WITHDRAW_FILE, private=str(file)) from None
    identifiers = [identifier.strip() for identifier in identifiers if identifier.strip()]
    if not identifiers:
        raise typer.BadParameter("there is no identifier")
    done = remove(site, identifiers)
    say(f"Withdrawn: {done.new} new of {len(set(identifiers))}. Their data are refused from now on.")
    say(f"Deleted: {counted(done.in_cohort, 'patient')} of the cohort, {done.series} fetched series.")
    if any(astuple(done.erased)):
        erased = done.erased
        messages, resources = counted(erased.messages, "HL7 message"), counted(erased.resources, "FHIR resource")
        say(f"Deleted of feeds: {messages}, whole or in part, {resources},")
        say(f"and the OMOP events of {counted(erased.histories, 'patient')}.")
    if done.in_cohort < len(set(identifiers)):
        say("Not all were in the cohort. If one should have been, compare the identifier with the one in the PACS.")
    say("Models that were trained before keep what they learnt. The sources of this hospital were not changed.")
    if file is not None:
        say(f"Delete {file}: it names the patients.")


def decommission(
    site_dir: Annotated[Path, typer.Argument(help="The site's folder, which is deleted.")],
    keep: Annotated[Path, typer.Option(file_okay=False, help="A new folder for the ledger and the proof of deletion.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the site's name.")] = False,
) -> None:
    """End this hospital's node for good: delete all data of patients and all keys, and keep the proof.

    Stop the node first. The hospital's own files, which were only read, stay as they are.
    """
    from federation.node.decommission import decommission as end
    from pipeline.site.folder import Site

    site = Site.open(site_dir)
    if (
        not yes
        and typer.prompt(f"This deletes the node in {site_dir} permanently. Type the site's name to go on") != site.name
    ):
        raise typer.BadParameter("that is not the site's name; nothing was deleted")
    parts, others = end(site, keep)
    say(f"Deleted {counted(sum(part.files for part in parts), 'file')}. {keep} holds the ledger and deletion.json.")
    if others:
        own = "Files or folders that are the hospital's own were left"
        say(f"{own}, such as exports and password files: {others}, in {site_dir}.")
    say("Delete the backups of this site too: they hold the key of the pseudonyms.")
    say("Ask the study's office to revoke the site. Models that were trained here stay with the study.")
