"""Settings files: a refusal names the invalid key but does not repeat its value."""

import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from models.refusal import Refusal
from models.settings import load_settings, read_settings, with_value

SECRET = "CANARY-4711"


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    days: int = Field(default=7, ge=1)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern="^[a-z]+$")
    table: Table = Table()


def refusal(path: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        load_settings(path, Settings)
    assert SECRET not in str(caught.value), "a value may be private"
    assert str(path.parent) not in str(caught.value), "a path may be private"
    assert path.name in caught.value.says
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site.toml"


def test_valid_file_is_read_with_defaults(path: Path) -> None:
    path.write_text('name = "ward"\n[table]\ndays = 3\n')
    assert load_settings(path, Settings) == Settings(name="ward", table=Table(days=3))
    path.write_text('name = "ward"\n')
    assert load_settings(path, Settings).table.days == 7


def test_missing_file_is_refused(path: Path) -> None:
    found = refusal(path)
    assert found.code == "E_SETTINGS_FILE"
    assert found.private == str(path)


def test_folder_instead_of_file_is_refused(path: Path) -> None:
    path.mkdir()
    assert refusal(path).code == "E_SETTINGS_FILE"


@pytest.mark.parametrize(
    "content",
    [
        f'name = "{SECRET}\n'.encode(),
        f"name = {SECRET}\n".encode(),
        f'name = "a"\npassword = "{SECRET}"\npassword = "{SECRET}"\n'.encode(),
        f'name = "{SECRET}'.encode() + b'\xff"\n',
        b"\xff\xfen\x00",
        b"name = " + b"[" * 5000 + b"]" * 5000,
        b"name = " + b"{a=" * 5000 + b"1" + b"}" * 5000,
        b"days = " + b"9" * 5000,
    ],
    ids=["open string", "bare word", "key twice", "not UTF-8", "UTF-16", "deep list", "deep table", "5000 digits"],
)
def test_invalid_toml_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal(path).code == "E_SETTINGS_SYNTAX"


def test_signature_that_some_editors_write_is_no_part_of_the_text(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfname = 'ward'\r\n")
    assert load_settings(path, Settings).name == "ward"
    assert read_settings(path) == "name = 'ward'\n"


@pytest.mark.parametrize(
    ("encoding", "says"), [("utf-16", "its encoding is UTF-16. Save it as UTF-8"), ("latin-1", "Save it as UTF-8")]
)
def test_refusal_of_another_encoding_says_what_to_do(path: Path, encoding: str, says: str) -> None:
    path.write_text('name = "Zürich"\n', encoding=encoding)
    assert says in refusal(path).says


def test_refusal_names_the_line_of_invalid_toml(path: Path) -> None:
    path.write_text(f'name = "ward"\ndays = {SECRET}\n')
    assert "line 2" in refusal(path).says


def test_refusal_names_all_invalid_keys_at_once(path: Path) -> None:
    path.write_text(f'name = "{SECRET}"\ncolour = "{SECRET}"\n[table]\ndays = "{SECRET}"\nweeks = "{SECRET}"\n')
    found = refusal(path)
    assert found.code == "E_SETTINGS_KEY"
    for key in ("name", "table.days"):
        assert f"{key}:" in found.says


def test_keys_that_do_not_exist_are_listed_together(path: Path) -> None:
    path.write_text('name = "ward"\ncolour = 1\n[table]\nweeks = 1\nmonths = 2\n')
    assert refusal(path).says.endswith("these keys do not exist: table.weeks, table.months, colour")


def test_refusal_names_a_missing_key(path: Path) -> None:
    path.write_text("")
    assert "name: it is missing" in refusal(path).says


TEXT = """# A file.
[first]
sites = 3          # how many
# sites = 4
name = 'a # b'  # "quoted"
[second]
sites = 7
names = [
    "x",
]
shape = [40, 56, -1.5]  # a row
"""


@pytest.mark.parametrize(
    ("table", "key", "value", "before", "after"),
    [
        ("first", "sites", "12", "sites = 3          # how many", "sites = 12         # how many"),
        ("first", "name", '"c"', "name = 'a # b'  # \"quoted\"", 'name = "c"      # "quoted"'),
        ("second", "sites", "1", "[second]\nsites = 7", "[second]\nsites = 1"),
        ("second", "secure", "true", "[second]\n", "[second]\nsecure = true\n"),
        ("second", "shape", "[1, 2]", "shape = [40, 56, -1.5]  # a row", "shape = [1, 2]          # a row"),
    ],
)
def test_new_value_leaves_comments_and_all_other_lines_as_they_are(table, key, value, before, after) -> None:  # type: ignore[no-untyped-def]
    assert with_value(TEXT, table, key, value) == TEXT.replace(before, after)


def test_missing_table_is_added_at_the_end() -> None:
    assert with_value(TEXT, "third", "sites", "1") == TEXT + "\n[third]\nsites = 1\n"


@pytest.mark.parametrize("head", ["[ second ]", "  [second]", "[second] # a remark"])
def test_table_is_found_in_each_of_its_usual_forms(head: str) -> None:
    text = TEXT.replace("[second]", head)
    assert with_value(text, "second", "sites", "1") == text.replace("sites = 7", "sites = 1")


@pytest.mark.parametrize(
    "text",
    [
        "second = {sites = 7}\n",
        "second.sites = 7\n",
        "second = 7\n",
        '["second"]\nsites = 7\n',
        "[second]\nnames = [\n[1],\n]\nsites = 7\n",
        '[second]\nsites = """\n7"""\n',
        '[first]\nnote = """\n[second]\n"""\n',
    ],
)
def test_value_is_not_set_where_the_text_would_mean_something_else(text: str) -> None:
    tomllib.loads(text)
    with pytest.raises(Refusal, match="E_SETTINGS_FORM") as refused:
        with_value(text, "second", "sites", "1")
    assert "sites in [second]" in refused.value.says


def test_value_with_an_escaped_quote_is_replaced_whole() -> None:
    assert with_value('[a]\nname = "x \\" y"\n', "a", "name", '"z"') == '[a]\nname = "z"\n'
