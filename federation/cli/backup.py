"""`backup` and `restore` of `fedthorax node`, `fedthorax server` and `fedthorax clinic`; `node accept-restore`."""

from pathlib import Path
from typing import Annotated

import typer

from federation.cli.console import quoted, say
from models.refusal import Refusal

SiteDir = Annotated[Path, typer.Argument(help="The site's folder.")]
ServerDir = Annotated[Path, typer.Argument(help="The server's folder.")]
ClinicDir = Annotated[Path, typer.Argument(metavar="CLINIC", help="The clinic's folder.")]
NewFile = Annotated[Path, typer.Argument(dir_okay=False, help="The backup: a new file, outside the folder.")]
BackupFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The file that `backup` wrote.")]
EmptyDir = Annotated[Path, typer.Argument(file_okay=False, help="Folder to restore to: a new or an empty one.")]


def backup_site(site_dir: SiteDir, file: NewFile) -> None:
    """Back up keys, settings, ledger and approvals to one private file. The node may run."""
    from federation.migration.backup import back_up_site, left_out_of_site

    _outside(file, site_dir)
    _tell(back_up_site(site_dir, file), file)
    for path in left_out_of_site(site_dir):
        say(f"Not in the backup, because it is larger than 1 MiB: {path.name}. Keep a copy of it if you need it.")
    say("It holds the key of the pseudonyms: keep it as secret as the patients.")


def restore_site(file: BackupFile, site_dir: EmptyDir) -> None:
    """Restore a site from its backup. Every patient keeps the pseudonym and the split."""
    from federation.migration.backup import restore_site
    from pipeline.site.folder import Site

    count = restore_site(file, site_dir)
    site = Site.open(site_dir)
    say(f"Restored the site {site.name} with {count} files. Never run two nodes with one key.")
    try:
        site.pseudonym("")
    except Refusal as refusal:  # earlier versions backed up sites without the key
        say(f"{refusal}. {refusal.remedy}")
    say("If patients withdrew after the backup, repeat it now: fedthorax node withdraw --help.")
    say(f"Next: fedthorax node check {quoted(site_dir)}, then fedthorax node ingest {quoted(site_dir)}.")
    say("The node takes part in nothing until you accept the restore: fedthorax node accept-restore --help.")


def accept_restore(
    site_dir: SiteDir,
    note: Annotated[
        str, typer.Option(help="Who decided, and why: one line of the ledger, without any patient's name.")
    ],
) -> None:
    """Let a restored node take part again. What left after the backup is forgotten, and could be asked a second time.

    Accept if the node took part in nothing between the backup and the loss, or if the backup is the newest possible.
    """
    from federation.ledger.chain import ledger_file
    from federation.ledger.restored import accept
    from pipeline.site.folder import Site

    accept(ledger_file(Site.open(site_dir)), note)
    say("The ledger holds the decision. The node takes part again; if it runs, it need not be restarted.")


def backup_server(folder: ServerDir, file: NewFile) -> None:
    """Back up keys, roster, runs, releases and MLflow's data to one private file. The server may run."""
    from federation.migration.backup import back_up_server

    _outside(file, folder)
    _tell(back_up_server(folder, file), file)
    say("It holds the key of the study's authority: whoever has it can issue certificates of the study.")


def restore_server(file: BackupFile, folder: EmptyDir) -> None:
    """Restore a server from its backup, on a machine with the same address. To move it, use export and import."""
    from federation.migration.backup import restore_server

    count, ended = restore_server(file, folder)
    say(f"Restored {count} files. Never run two servers of one study.")
    say(
        "Sites that were revoked after the backup are admitted again: revoke them now (fedthorax server revoke --help)."
    )
    if ended:
        say(f"Open codes have ended, because they may have been used since. Enrol again: {', '.join(ended)}.")
    say("A site that joined after the backup needs a new code, too.")
    say(f"Next: fedthorax server start {quoted(folder)}, then fedthorax study list --server {quoted(folder)}.")


def backup_clinic(folder: ClinicDir, file: NewFile) -> None:
    """Back up settings, database, answers and models to one private file. The clinic may run."""
    from federation.migration.backup import back_up_clinic

    _outside(file, folder)
    _tell(back_up_clinic(folder, file), file)
    say("It holds patients' names and results: keep it as secret as the hospital's reports.")


def restore_clinic(file: BackupFile, folder: EmptyDir) -> None:
    """Restore a clinic from its backup. Scans that waited for a score must be sent again."""
    from federation.migration.backup import restore_clinic

    count = restore_clinic(file, folder)
    say(f"Restored {count} files. All sessions have ended: everybody signs in again.")
    say(
        "Tokens that were revoked, and accounts that were disabled, after the backup are valid again: revoke or disable"
    )
    say("them now (fedthorax clinic tokens --help).")
    say(f"Next: fedthorax clinic status {quoted(folder)}, then fedthorax serve {quoted(folder)}.")


def _outside(file: Path, folder: Path) -> None:
    if file.resolve().is_relative_to(folder.resolve()):
        raise typer.BadParameter("choose a file outside the folder that it backs up")
    if not file.resolve().parent.is_dir():
        raise typer.BadParameter("the folder of the backup does not exist")


def _tell(count: int, file: Path) -> None:
    say(f"Wrote {count} files to {file} ({file.stat().st_size / 1e6:.1f} MB), which only its owner may read.")
