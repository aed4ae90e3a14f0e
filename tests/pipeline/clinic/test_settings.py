"""Tests of clinic.toml: its template, the settings that are refused, and the clinic's folder."""

import re
import stat
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import configs
from models.refusal import Refusal
from pipeline.clinic.settings import (
    FOLDERS,
    SETTINGS,
    Clinic,
    ClinicSettings,
    Hl7ResultsTable,
    ServerTable,
    init_clinic,
)
from pipeline.identity.oidc_settings import OidcTable

TEMPLATE = Path(configs.__file__).with_name(SETTINGS)
DICOMWEB = '[pacs]\nprotocol = "dicomweb"\n[pacs.dicomweb]\nurl = "https://pacs.example/dicom-web"\n'


def opened(folder: Path, text: str, **server: object) -> Clinic:
    (folder / SETTINGS).write_text(text)
    return Clinic.open(folder, **server)  # type: ignore[arg-type]


def refused(folder: Path, text: str, **server: object) -> Refusal:
    with pytest.raises(Refusal) as caught:
        opened(folder, text, **server)
    return caught.value


def test_template_contains_the_default_values() -> None:
    written = ClinicSettings.model_validate(tomllib.loads(TEMPLATE.read_text(encoding="utf-8")))
    assert written == ClinicSettings()


def test_template_contains_every_setting() -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, field in ClinicSettings.model_fields.items():
        section = text.partition(f"[{name}]\n")[2].partition("\n[")[0]
        table = OidcTable if name == "oidc" else field.annotation  # absent by default, so of two types
        if name in ("node", "pacs"):  # absent by default; the keys of [pacs] are documented in site.toml
            assert section
            continue
        assert isinstance(table, type) and issubclass(table, BaseModel)
        for key in table.model_fields:
            if f"# [{name}.{key}]" in text:
                continue
            assert re.search(rf"^(# )?{key} = ", section, re.MULTILINE), f"[{name}] {key}"


@pytest.mark.parametrize(
    ("template", "is_valid"),
    [
        ("", True),
        ("https://ohif.example/viewer?StudyInstanceUIDs={study_uid}", True),
        ("weasis://x?study={study_uid}&patient={patient_id}", True),
        ("javascript:alert('{study_uid}')", False),
        ("http://ohif.example/{study_uid}", False),
        ("https://ohif.example/viewer", False),
        ("https://ohif.example/{study_uid}/{patient_name}", False),
    ],
)
def test_address_of_the_viewer_is_checked(template: str, is_valid: bool) -> None:
    if is_valid:
        assert ServerTable(viewer_url=template).viewer_url == template
    else:
        with pytest.raises(ValueError, match="viewer_url"):
            ServerTable(viewer_url=template)


def test_template_contains_every_setting_of_the_hl7_receiver() -> None:
    """The keys of [results.fhir] are documented in site.toml."""
    section = TEMPLATE.read_text(encoding="utf-8").partition("# [results.hl7]\n")[2].partition("\n\n")[0]
    for key in Hl7ResultsTable.model_fields:
        assert re.search(rf"^# {key} = ", section, re.MULTILINE), key


def test_clinic_works_without_a_settings_file(tmp_path: Path) -> None:
    clinic = Clinic.open(tmp_path)
    server = clinic.settings.server
    assert (server.host, server.port) == ("127.0.0.1", 8765)
    assert (clinic.pacs, clinic.node, clinic.settings.results.send) == (None, None, "off")
    for name in FOLDERS:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


def test_new_clinic_folder_is_accessible_to_its_owner_only(tmp_path: Path) -> None:
    clinic = init_clinic(tmp_path / "clinic")
    assert stat.S_IMODE(clinic.folder.stat().st_mode) == 0o700
    assert (clinic.folder / SETTINGS).read_text() == TEMPLATE.read_text()
    (clinic.folder / SETTINGS).write_text("[server]\nport = 9000\n")
    with pytest.raises(Refusal) as caught:
        init_clinic(clinic.folder)
    assert caught.value.code == "E_CLINIC_EXISTS"
    assert Clinic.open(clinic.folder).settings.server.port == 9000


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("model.json", "E_CLINIC_IS_MODEL"),
        ("model.sig", "E_CLINIC_IS_MODEL"),
        ("1.dcm", "E_CLINIC_FOLDER"),
        ("site.toml", "E_NO_CLINIC"),
    ],
)
def test_folder_of_other_files_does_not_become_a_clinic(file: str, code: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    tmp_path.chmod(0o755)
    for make in (Clinic.open, init_clinic) if code != "E_NO_CLINIC" else (Clinic.open,):
        with pytest.raises(Refusal) as caught:
            make(tmp_path)
        assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_folder_of_a_new_volume_and_a_clinic_without_settings_are_opened(tmp_path: Path) -> None:
    for name in ("lost+found", ".snapshot"):
        (tmp_path / name).mkdir()
    Clinic.open(tmp_path).store().close()
    (tmp_path / "notes.txt").touch()
    Clinic.open(tmp_path)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as caught:
        Clinic.open(tmp_path / "nowhere")
    assert caught.value.code == "E_NO_CLINIC"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[keep]\naudit_days = 182\n", "keep.audit_days"),
        ("[keep]\nanswers = 3\n", "keep.answers"),
        ("[server]\nport = 0\n", "server.port"),
        ('[server]\nhost = "0.0.0.0"\n', "without_tls"),
        ('[server]\ncertificate = "a.crt"\n', "certificate and key"),
        ('[results]\nsend = "always"\n', "results"),
        ('[results]\nsend = "always"\nby = "c-store"\n', "results"),
        ('[results]\nsend = "sometimes"\n', "results.send"),
        (f'[node]\nfolder = "../site"\n{DICOMWEB}', "the clinic's own [pacs]"),
        ('[receiver]\naet = "a name that is too long"\n', "receiver.aet"),
        ('[receiver]\nenabled = true\nhost = "0.0.0.0"\n', "without_tls"),
        ('[receiver]\nenabled = true\nhost = "::"\n', "without_tls"),
        ('[receiver]\nenabled = true\nhost = "10.1.2.3"\nwithout_tls = false\n', "without_tls"),
        ('[receiver]\nenabled = true\nhost = "pacs.hospital.example"\n', "without_tls"),
        ('[receiver]\nenabled = true\nhost = "10.1.2.3"\ncertificate = "a.crt"\nkey = "a.key"\n', "belong together"),
    ],
)
def test_wrong_settings_are_refused_by_key(tmp_path: Path, text: str, key: str) -> None:
    refusal = refused(tmp_path, text)
    assert refusal.code == "E_SETTINGS_KEY"
    assert key in refusal.says


@pytest.mark.parametrize(
    "text",
    [
        "enabled = true\n",
        'enabled = true\nhost = "localhost"\n',
        'enabled = true\nhost = "127.0.0.7"\n',
        'enabled = true\nhost = "::1"\n',
        'enabled = true\nhost = "0.0.0.0"\nwithout_tls = true\n',
        'enabled = true\nhost = "0.0.0.0"\ncertificate = "a.crt"\nkey = "a.key"\nca_certificate = "ca.crt"\n',
        'enabled = false\nhost = "0.0.0.0"\n',  # a disabled receiver opens no port
    ],
)
def test_receiver_needs_tls_localhost_or_an_explicit_setting(tmp_path: Path, text: str) -> None:
    assert opened(tmp_path, f"[receiver]\n{text}").settings.receiver


def test_results_settings_define_the_target_pacs(tmp_path: Path) -> None:
    by_web = opened(tmp_path, '[results]\nsend = "always"\nurl = "https://pacs.example/web"\ntoken_file = "t"\n')
    web = by_web.settings.results.pacs.dicomweb
    assert web and (web.url, web.token_file) == ("https://pacs.example/web", Path("t"))
    by_store = opened(tmp_path, '[results]\nsend = "on_request"\nby = "c-store"\nhost = "pacs.example"\n')
    dimse = by_store.settings.results.pacs.dimse
    assert dimse and (dimse.host, dimse.port, dimse.called_aet) == ("pacs.example", 104, "PACS")


def test_command_line_overrides_the_settings_file(tmp_path: Path) -> None:
    clinic = opened(tmp_path, '[server]\nport = 9000\nnames = ["ward.example"]\n', port=9001)
    server = clinic.settings.server
    assert (server.host, server.port, server.names) == ("127.0.0.1", 9001, ["ward.example"])
    assert opened(tmp_path, "", host="::1").settings.server.host == "::1"
    assert refused(tmp_path, "", host="0.0.0.0").code == "E_CLINIC_ADDRESS"  # neither TLS nor a proxy is configured
    with_tls = '[server]\ncertificate = "a.crt"\nkey = "a.key"\n'
    assert opened(tmp_path, with_tls, host="0.0.0.0").settings.server.host == "0.0.0.0"


def test_pacs_settings_come_from_the_node_or_the_clinic(tmp_path: Path) -> None:
    clinic = opened(tmp_path, DICOMWEB)
    assert clinic.pacs == (clinic.settings.pacs, clinic.folder)
    site = tmp_path / "site"
    site.mkdir()
    (site / "site.toml").write_text(f'[site]\nname = "ward"\n[labels]\nfile = "labels.csv"\n{DICOMWEB}')
    of_node = opened(tmp_path, '[node]\nfolder = "site"\n')
    assert of_node.node and of_node.node.name == "ward"
    assert of_node.pacs and (of_node.pacs[0].protocol, of_node.pacs[1]) == ("dicomweb", site)


OIDC = {
    "issuer": "https://login.example/realm",
    "client_id": "fedthorax",
    "page_url": "https://thorax.example/",
    "roles": {"read": ["readers"]},
}


@pytest.mark.parametrize(
    ("changed", "is_valid"),
    [
        ({}, True),
        ({"issuer": "http://127.0.0.1:9/"}, True),
        ({"issuer": "http://login.example"}, False),
        ({"issuer": "https://user:password@login.example"}, False),
        ({"issuer": "https://login.example?a=b"}, False),
        ({"page_url": "https://thorax.example"}, False),
        ({"page_url": "http://thorax.example/"}, False),
        ({"page_url": "javascript:alert(1)/"}, False),
        ({"scope": "profile"}, False),
        ({"roles": {}}, False),
        ({"roles": {"root": ["x"]}}, False),
        ({"role_claim": []}, False),
        ({"role_claim": ["realm_access", "roles"]}, True),
        ({"family_name_claim": ""}, False),
        ({"family_name_claim": "", "given_name_claim": ""}, True),
        ({"sign_in_with_tokens": False}, False),
        ({"sign_in_with_tokens": False, "emergency_admin": "emergency"}, True),
        ({"proxy": "proxy"}, False),
    ],
)
def test_oidc_table_is_safe_and_gives_somebody_access(changed: dict[str, object], is_valid: bool) -> None:
    if is_valid:
        assert OidcTable.model_validate({**OIDC, **changed})
    else:
        with pytest.raises(ValidationError):
            OidcTable.model_validate({**OIDC, **changed})
