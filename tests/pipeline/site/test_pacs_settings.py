"""Tests of the table [pacs]: its template, the settings that are refused, and the files that hold secrets."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import configs
from models.refusal import Refusal
from pipeline.site.folder import SiteSettings
from pipeline.site.pacs_settings import DicomWebTable, DimseTable, Filters, Limits, PacsTable, named_file, read_secret

WEB = {"url": "https://pacs.example/dicom-web"}
DIMSE = {"host": "pacs.example", "port": 104, "called_aet": "PACS"}
MOVE = DIMSE | {"retrieve": "c-move"}


def template() -> str:
    """The commented section of the template, without the first # of each line."""
    text = Path(configs.__file__).with_name("site.toml").read_text()
    start = text.index("# [pacs]\n")
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in text[start:].split("\n\n")[0].splitlines())


def test_the_site_template_shows_the_defaults() -> None:
    table = tomllib.loads(template())["pacs"]
    expected = PacsTable(protocol="dicomweb", dicomweb=DicomWebTable(**WEB), dimse=DimseTable(**DIMSE))
    assert PacsTable.model_validate(table) == expected
    for key, model in (("dicomweb", DicomWebTable), ("dimse", DimseTable), ("filters", Filters), ("limits", Limits)):
        assert issubclass(model, BaseModel)
        unset = {name for name, field in model.model_fields.items() if field.default is None}
        assert table[key].keys() == model.model_fields.keys() - unset
        assert all(f"\n# {name} = " in template() for name in unset), "the template does not explain this key"


def test_every_example_in_the_template_is_valid() -> None:
    lines = [
        line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in template().splitlines()
    ]
    pacs = tomllib.loads("\n".join(lines))["pacs"]
    pacs["dicomweb"].pop("password_file")  # token_file is used instead
    site = {"site": {"name": "ward"}, "labels": {"file": "labels.csv"}, "pacs": pacs}
    assert SiteSettings.model_validate(site).pacs is not None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"protocol": "dimse", "dicomweb": WEB}, r"\[pacs.dimse\] is missing"),
        ({"protocol": "dicomweb", "dimse": DIMSE}, r"\[pacs.dicomweb\] is missing"),
        ({"protocol": "ftp"}, "dicomweb"),
        ({"protocol": "dicomweb", "dicomweb": WEB | {"password": "x"}}, "not permitted"),
        ({"protocol": "dicomweb", "dicomweb": {"url": ""}}, "must not be empty"),
        ({"protocol": "dicomweb", "dicomweb": {"url": "pacs.example/dicom-web"}}, "https://host"),
        ({"protocol": "dicomweb", "dicomweb": {"url": "https://me:secret@pacs.example"}}, "without user"),
        ({"protocol": "dicomweb", "dicomweb": WEB | {"proxy": "http://me:secret@proxy:1"}}, "without user"),
        ({"protocol": "dicomweb", "dicomweb": WEB | {"user": "node"}}, "belong together"),
        ({"protocol": "dicomweb", "dicomweb": WEB | {"password_file": "p"}}, "belong together"),
        (
            {"protocol": "dicomweb", "dicomweb": WEB | {"user": "node", "password_file": "p", "token_file": "t"}},
            "either user",
        ),
        ({"protocol": "dicomweb", "dicomweb": WEB | {"key": "k"}}, "belong together"),
        ({"protocol": "dicomweb", "dicomweb": {"url": "http://pacs.example", "ca_certificate": "c"}}, "with https"),
        ({"protocol": "dimse", "dimse": DIMSE | {"called_aet": "A\\B"}}, "called_aet"),
        ({"protocol": "dimse", "dimse": DIMSE | {"calling_aet": "SEVENTEENLETTERS-"}}, "calling_aet"),
        ({"protocol": "dimse", "dimse": DIMSE | {"certificate": "c"}}, "belong together"),
        ({"protocol": "dimse", "dimse": DIMSE | {"certificate": "c", "key": "k"}}, "needs ca_certificate"),
        ({"protocol": "dimse", "dimse": MOVE | {"receiver_host": "0.0.0.0"}}, "receiver_without_tls"),
        ({"protocol": "dimse", "dimse": MOVE | {"receiver_host": ""}}, "receiver_without_tls"),
        ({"protocol": "dimse", "dimse": MOVE | {"receiver_host": "node.example"}}, "receiver_without_tls"),
        (
            {"protocol": "dimse", "dimse": DIMSE, "filters": {"from_date": "2021-02-01", "to_date": "2021-01-01"}},
            "after to_date",
        ),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PacsTable.model_validate(wrong)


def test_secret_is_the_first_line_of_a_file_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(" with blanks, é \nsecond line\n", encoding="utf-8")
    path.chmod(0o600)
    assert read_secret(path) == "with blanks, é"
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(Refusal, match="E_PACS_FILE") as caught:
            read_secret(path)
        assert str(path) in caught.value.private
        assert "blanks" not in caught.value.private


@pytest.mark.parametrize("content", [None, b"", b"\nsecond", b"\xff\xfe"], ids=["absent", "empty", "blank", "not text"])
def test_file_without_a_secret_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.touch(mode=0o600)
        path.write_bytes(content)
    with pytest.raises(Refusal, match="E_PACS_FILE"):
        read_secret(path)


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="E_PACS_FILE"):
        named_file(tmp_path)


@pytest.mark.parametrize(
    "dimse",
    [
        MOVE,
        MOVE | {"receiver_host": "10.1.2.3", "receiver_without_tls": True},
        MOVE | {"receiver_host": "10.1.2.3", "ca_certificate": "ca.crt", "certificate": "c.crt", "key": "c.key"},
        DIMSE | {"receiver_host": "10.1.2.3"},  # C-GET needs no receiver
    ],
)
def test_c_move_receiver_needs_tls_localhost_or_an_explicit_setting(dimse: dict[str, Any]) -> None:
    assert DimseTable.model_validate(dimse)
