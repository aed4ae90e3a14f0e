"""Prints what `study attack` measured, as tables for a terminal. The model card has the same in Markdown."""

import typer

from federation.cli.console import print_table
from models.attacks import Attacks, inversion_control, membership_control


def print_attacks(attacks: Attacks) -> None:
    """Print each attack's control and figures on standard output."""
    typer.echo("Was a patient in the training data? (membership inference: a small loss means yes)")
    typer.echo(membership_control(attacks))
    rows = [
        (
            loss,
            f"{m.members} / {m.others}",
            str(m.auroc),
            str(m.tpr_at_1_percent_fpr),
            str(m.tpr_at_10_percent_fpr),
        )
        for loss, m in attacks.membership.items()
    ]
    rows.append(("guessing", "", "0.5", "0.01", "0.1"))
    columns = ("loss of", "members / others", "AUROC (95 %)", "found at 1 % false alarms", "found at 10 % false alarms")
    print_table(columns, rows)
    typer.echo("\nCan a scan be reconstructed from an update? (gradient inversion: PSNR in dB, higher is more similar)")
    typer.echo(inversion_control(attacks))
    print_table(
        ("what the attacker sees", "of scans", "best reconstruction", "constant image", "mean of other scans"),
        [
            (i.seen, str(i.scans), f"{i.best_db:.1f}", f"{i.constant_db:.1f}", f"{i.typical_db:.1f}")
            for i in attacks.inversion
        ],
    )
    typer.echo("\nAn attack that fails proves nothing: a better one may succeed. docs/attacks.md explains the figures.")
