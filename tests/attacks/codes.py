"""A hostile app that sends a name instead of an error code. Approval of apps does not help if a hostile app was
approved.
"""

from collections.abc import Iterator

from flwr.app import Context, Error, Message

from tests.attacks.result import Result
from tests.attacks.rig import Rig, released_study, rig, seed_network

ADVERSARY = "the app's code"
_NAMES = {
    "a name as a code": "E_SMITH_JOHN_BORN_MARCH",
    "a name as a warning": "W_SMITH_JOHN",
    "a name after a code": "E_SITE_FAILED_SMITH_JOHN",
    "a name after a code's colon": "E_SITE_FAILED: SMITH JOHN",
}


def names_as_codes(attacked: Rig) -> Result:
    """Try each spelling of a name; count those that reach the server."""
    study, said = released_study(), ""

    def app(message: Message, context: Context) -> Message:
        return Message(Error(1, said), reply_to=message)

    attacked.app = app
    arrived = []
    for how, text in _NAMES.items():
        said = text
        answer = attacked.ask("train", study, seed_network(study))
        if "SMITH" in answer.code:
            arrived.append(how)
    stopped_by = "" if arrived else attacked.first_code
    note = ", ".join(arrived)
    return Result("a name in an error's code", ADVERSARY, "a name", len(arrived), 0, len(_NAMES), stopped_by, note)


def attacks() -> Iterator[Result]:
    """Run at a separate hospital."""
    with rig() as attacked:
        yield names_as_codes(attacked)
