"""Sign-in with the hospital's account and the administrator's page, in a real browser with a real service."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from federation.system.process import free_port
from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import save_release
from pipeline.clinic.settings import SETTINGS, Clinic
from pipeline.clinic.web.auth import Tokens
from tests.e2e.browser import Page, open_browser
from tests.e2e.conftest import Command, ok
from tests.e2e.test_clinic_page import serious
from tests.helpers.descriptions import description
from tests.pipeline.clinic.web.identity_provider import CLIENT_ID, SECRET, IdentityProvider, serving

pytestmark = pytest.mark.e2e

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625)
OIDC = """
[server]
port = {port}
[oidc]
issuer = "{issuer}"
client_id = "{client_id}"
client_secret_file = "oidc-secret"
page_url = "{page}"
sign_in_with_tokens = false
emergency_admin = "emergency"
[oidc.roles]
score = ["radiology"]
admin = ["thorax-admins"]
[results]
send = "accepted"
url = "http://127.0.0.1:{port}/no-pacs"
"""
SECTIONS = ("users", "models", "readers", "systems", "records", "retention")


@dataclass(frozen=True)
class Rig:
    """A clinic that uses a provider, and the provider."""

    url: str
    folder: Path
    provider: IdentityProvider

    def actions(self) -> list[tuple[str, str]]:
        with Clinic.open(self.folder).store() as store:
            return [(each.who, each.action) for each in store.audit.records()]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("clinic")
    port = free_port()
    page = f"http://localhost:{port}/"
    with serving(IdentityProvider(page)) as provider:
        (folder / "oidc-secret").touch(mode=0o600)
        (folder / "oidc-secret").write_text(SECRET)
        settings = OIDC.format(port=port, issuer=provider.issuer, client_id=CLIENT_ID, page=page)
        (folder / SETTINGS).write_text(settings)
        for number, name in enumerate(("first", "second")):
            model = tmp_path_factory.mktemp(name) / name
            save_release(model, build_network(SMALL, seed=number), description(study=name, network=SMALL))
            ok("clinic", "add-model", folder, model, *(["--live"] if number == 0 else []))
        served = start("serve", folder)
        served.wait_for(rf"http://127\.0\.0\.1:{port}", seconds=300)
        yield Rig(page, folder, provider)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory, rig: Rig) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("browser")) as page:
        page.sized(1280, 900)
        yield page


def sign_in(page: Page, rig: Rig, *groups: str) -> None:
    rig.provider.user["groups"] = list(groups)
    page.goto(rig.url)
    page.wait_for("document.querySelector('#sso-form').checkVisibility()")
    page.click("#sso-form button")


def test_administrator_signs_in_with_the_hospitals_account_and_manages_the_clinic(tab: Page, rig: Rig) -> None:
    sign_in(tab, rig, "visitors")
    tab.wait_for_text("(E_SIGN_IN_ROLE)", "#sign-in-refused")
    assert "code=" not in tab.js("location.href")
    assert serious(tab) == []

    sign_in(tab, rig, "thorax-admins")
    tab.wait_for_text("sso:anna", "#who-asks")
    assert tab.js("document.cookie") == ""
    assert "code=" not in tab.js("location.href")
    tab.click("#show-admin")
    tab.wait_for_text("sso:anna", "#users-found")
    for section in SECTIONS:
        tab.js(f"document.querySelector('#sections [href=\"#{section}\"]').focus()")
        tab.key("Enter")
        tab.wait_for(f"document.querySelector('#{section}').checkVisibility()")
        tab.wait_for(f"document.querySelector('#{section} table')")
        assert tab.text("#refused") == ""
        assert serious(tab) == [], section
        tab.sized(390, 844)
        tab.wait_for("innerWidth === 390")  # tables scroll in their own box
        assert tab.js("document.documentElement.scrollWidth <= innerWidth"), section
        tab.sized(1280, 900)
    _users(tab, rig)
    _models(tab, rig)
    _systems(tab)
    _records(tab)
    own = [url for url in tab.requests if url.startswith((rig.url, "data:"))]
    others = {re.sub(r"\?.*", "", url) for url in tab.requests} - {re.sub(r"\?.*", "", url) for url in own}
    assert others == {f"{rig.provider.issuer}/authorize"}

    tab.click("#sign-out")
    tab.wait_for("document.querySelector('#sso-form')?.checkVisibility()")  # by way of the provider's sign-out
    assert rig.provider.asked["/realm/sign-out"] == 1
    tab.goto(f"{rig.url}admin")
    tab.wait_for_text("Sign in", "#closed")
    assert not tab.js("document.querySelector('#desk').checkVisibility()")


def _open(page: Page, section: str) -> None:
    """Open a section, and wait for what the service says now: a button of the last time does not stay."""
    page.js(f"document.querySelector('#{section}-found').replaceChildren(); location.hash = '#{section}'")
    page.wait_for(f"document.querySelector('#{section}-found').childElementCount")


def _users(page: Page, rig: Rig) -> None:
    """Create a token for a program, change its role, and revoke it, with the keyboard."""
    _open(page, "users")
    page.js("document.querySelector('#new-token [name=name]').focus()")
    page.write("sso:prometheus")
    page.key("Enter")
    page.wait_for_text("(E_TOKEN_NAME)", "#refused")
    page.js("document.querySelector('#new-token [name=name]').select()")
    page.write("prometheus")
    page.key("Enter")
    page.wait_for("document.querySelector('#secret').open")
    secret = page.text("#secret-token")
    assert serious(page) == []
    page.listen()
    page.key("Escape")
    page.wait_to_hear("The token was created.")
    assert page.text("#refused") == ""  # what was refused before
    page.wait_for_text("prometheus", "#users-found")
    page.wait_for(f"!document.documentElement.innerHTML.includes({json.dumps(secret)})")
    assert Tokens(rig.folder).caller(secret).role == "score"
    assert "no expiry" in page.text("#users-found tr:has([aria-label='Set role: prometheus'])")
    page.js("document.querySelector('#users-found select').value = 'read'")
    page.js("document.querySelector('[aria-label=\"Set role: prometheus\"]').focus()")
    page.key("Enter")
    page.wait_for("document.querySelector('#confirm').open")
    assert serious(page) == []
    page.listen()
    page.js("document.querySelector('#confirm-yes').focus()")
    page.key("Enter")
    page.wait_to_hear("The role was changed.")
    assert Tokens(rig.folder).caller(secret).role == "read"
    page.wait_for("document.activeElement.ariaLabel === 'Set role: prometheus'")
    page.js("document.querySelector('[aria-label=\"Revoke: prometheus\"]').focus()")
    page.key("Enter")
    page.wait_for("document.querySelector('#confirm').open")
    page.key("Escape")  # nothing happens without an agreement
    assert Tokens(rig.folder).caller(secret).role == "read"
    page.wait_for("document.activeElement.ariaLabel === 'Revoke: prometheus'")
    page.js("document.querySelector('[aria-label=\"Reset: prometheus\"]').focus()")
    page.key("Enter")
    page.wait_for("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    page.wait_for("document.querySelector('#secret').open")
    page.listen()
    page.key("Escape")
    page.wait_to_hear("The token was reset.")
    page.wait_for("document.activeElement.ariaLabel === 'Reset: prometheus'")
    page.click('[aria-label="Revoke: prometheus"]')
    page.wait_for("document.querySelector('#confirm').open")
    page.click("#confirm-yes")
    page.wait_for_text("disabled", "#users-found")
    page.wait_for("document.activeElement.id === 'users-found'")  # the row has no button left
    done = [action for who, action in rig.actions() if who == "sso:anna" and action != "worklist"]
    assert done == ["account", "sign_in", "token", "role", "reset", "revoke"]


def _models(page: Page, rig: Rig) -> None:
    _open(page, "models")
    assert "second" in page.text("#models-found")
    assert "add-model" in page.text("#models")  # and why this is not on the page
    page.click('[aria-label="Run in shadow: second"]')
    page.wait_for("document.querySelector('[aria-label=\"End shadow: second\"]')")
    assert rig.actions()[-1] == ("sso:anna", "shadow")
    assert not page.js("document.querySelector('[aria-label=\"Make live: second\"]')")  # nothing was compared yet


def _systems(page: Page) -> None:
    _open(page, "systems")
    assert "PACS, for results" in page.text("#systems-found")
    page.click('[aria-label="Test: PACS, for results"]')
    page.wait_for_text("(E_PACS_", "#systems-found", seconds=120)


def _records(page: Page) -> None:
    _open(page, "records")
    assert "test_connection" in page.text("#records-found")
    page.js("document.querySelector('#search [name=action]').value = 'token'")
    page.click("#search button")
    page.wait_for("document.querySelectorAll('#records-found tbody tr').length === 1")
    assert "sso:anna" in page.text("#records-found")
