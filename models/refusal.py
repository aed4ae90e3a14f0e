"""Defines refusals: coded reasons with a remedy, raised instead of errors with a stack trace.

Each room has a table of its reasons, the module `reasons` (see `models.reason_tables`). `docs/refusals.md` lists all of
them on one page.
"""

import re
from dataclasses import dataclass

_ERROR_NUMBER = re.compile(r"\[Errno -?\d+\] ")


@dataclass(frozen=True)
class Reason:
    """One line of a package's table of reasons.

    `code` is stable and starts with `E_` (refused) or `W_` (accepted, flagged). `says` may contain numbers in braces,
    but never patients, identifiers, dates or paths. `remedy` says what to do next.
    """

    code: str
    says: str
    remedy: str

    @property
    def refuses(self) -> bool:
        return self.code.startswith("E_")


def without_error_number(text: str) -> str:
    """Return a text without the numbers that Python puts before a system error's words, such as "[Errno 17]"."""
    return _ERROR_NUMBER.sub("", text)


class Refusal(Exception):
    """An exception with a coded reason.

    The text holds the reason and numbers alone, so that it may be shown, logged and sent.

    Parameters
    ----------
    reason : Reason
        The reason: a stable code, what it says and its remedy.
    private : str
        Whatever identifies a patient or a file; only the site's own screen and log may show it. It is kept without the
        numbers of system errors, so that the text of an OSError may be given as it is.
    **numbers : float, int or str
        Values for the braces in the reason's text.
    """

    def __init__(self, reason: Reason, *, private: str = "", **numbers: float | int | str) -> None:
        self.reason = reason
        self.private = without_error_number(private)
        self.numbers = numbers
        self.besides: Refusal | None = None
        super().__init__(f"{reason.code}: {self.says}")

    def with_besides(self, found: "Refusal") -> "Refusal":
        """Return this refusal with what else was found and may be its cause: this code, texts and remedies of both."""
        private = "; ".join(filter(None, [self.private, found.private]))
        both = Refusal(self.reason, private=private, **self.numbers)
        both.besides = found
        both.args = (f"{both.code}: {both.says}",)
        return both

    @property
    def code(self) -> str:
        """The stable code, such as "E_NO_SITE"."""
        return self.reason.code

    @property
    def says(self) -> str:
        """What is wrong, with its numbers."""
        own = self.reason.says.format(**self.numbers)
        return f"{own}; {self.besides.says}" if self.besides else own

    @property
    def remedy(self) -> str:
        """What to do next."""
        return f"{self.besides.remedy} {self.reason.remedy}" if self.besides else self.reason.remedy

    def to_json(self) -> dict[str, str]:
        """Return code, text and remedy, without `private`."""
        return {"code": self.code, "says": self.says, "remedy": self.remedy}
