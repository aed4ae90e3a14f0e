"""Defines the results of attacks on a release: the content of attacks.json, and its section in the card."""

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(_Record):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


class Membership(_Record):
    """How well one loss distinguishes training patients from others.

    Guessing gives an AUROC of 0.5 and true positive rates equal to the false positive rates (0.01, 0.1).
    """

    members: int
    others: int
    auroc: Interval
    tpr_at_1_percent_fpr: Interval
    tpr_at_10_percent_fpr: Interval


class Inversion(_Record):
    """How similar the best reconstruction is to a scan, with reference values without any attack.

    All are in dB (PSNR): of the reconstruction, of a constant image with the scan's mean, of the mean of other scans.
    """

    seen: str  # what the attacker saw, in words
    scans: int  # number of scans from which it was made
    best_db: float
    constant_db: float
    typical_db: float


class Control(_Record):
    """An attack that must succeed; if it fails, the measurement cannot find a leak."""

    value: float
    needed: float

    @property
    def holds(self) -> bool:
        return self.value >= self.needed  # false for NaN too


class Attacks(_Record):
    """The content of attacks.json; `release` is the SHA-256 of the model that was attacked."""

    release: str
    software: str
    membership_control: Control  # AUROC
    membership: dict[str, Membership]  # by loss: joint, or of one label
    inversion_control: Control  # dB
    inversion: list[Inversion]


def attacks_section(attacks: Attacks) -> str:
    """Return the card's section in Markdown."""
    a = attacks
    membership = "\n".join(
        f"| {loss} | {m.members} | {m.others} | {m.auroc} | {m.tpr_at_1_percent_fpr} | {m.tpr_at_10_percent_fpr} |"
        for loss, m in a.membership.items()
    )
    inversion = "\n".join(
        f"| {i.seen} | {i.scans} | {i.best_db:.1f} | {i.constant_db:.1f} | {i.typical_db:.1f} |" for i in a.inversion
    )
    return f"""
## Attacks measured
Measured by {a.software} on patients of hospitals that trained. An attack that fails proves nothing: a better one may
succeed. The figures are computed from these patients, without noise.

### Was a patient in the training data? (membership inference: a small loss means yes)
{_marked(a.membership_control, membership_control(a))}

| loss of | members | others | AUROC (95 % interval) | found at 1 % false alarms | found at 10 % false alarms |
| --- | --- | --- | --- | --- | --- |
{membership}

Guessing gives 0.5, 0.01 and 0.1. With fewer than 100 others, 1 % false alarms means no false alarm; guessing
then finds one member in (others + 1).

### Can a scan be reconstructed from an update? (gradient inversion: PSNR in dB, higher is more similar)
{_marked(a.inversion_control, inversion_control(a))}

| what the attacker sees | of scans | best reconstruction | constant image | mean of other scans |
| --- | --- | --- | --- | --- |
{inversion}

The constant image needs no attack; the mean of other scans needs only public data.
"""


def membership_control(attacks: Attacks) -> str:
    """Return a sentence about the control of membership inference."""
    return _verdict(attacks.membership_control, "a network overfitted on purpose: AUROC", 2)


def inversion_control(attacks: Attacks) -> str:
    """Return a sentence about the control of gradient inversion."""
    return _verdict(attacks.inversion_control, "one scan's raw gradient in a small network: dB", 1)


def _verdict(control: Control, what: str, digits: int) -> str:
    figures = f"Control, {what} {control.value:.{digits}f}, at least {control.needed:.{digits}f} needed"
    if control.holds:
        return f"{figures}: reached, so this measurement can find a leak."
    return f"{figures}: NOT reached. These figures could not be trusted, and do not mean that the model is safe."


def _marked(control: Control, sentence: str) -> str:
    return sentence if control.holds else f"**{sentence}**"
