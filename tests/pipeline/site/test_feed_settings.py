"""The commented tables of feeds in the template of site.toml: their defaults and examples are those of the program."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import configs
from pipeline.records.laboratory.listener_settings import ListenerTable
from pipeline.records.outcomes import OmopOutcomes
from pipeline.site.fhir_settings import FhirTable
from pipeline.site.folder import SiteSettings
from pipeline.site.omop_settings import OmopTable

TEMPLATE = Path(configs.__file__).with_name("site.toml").read_text()
# Settings with an example in the template instead of their default.
EXAMPLES: dict[str, dict[str, Any]] = {
    "fhir": {
        "url": "https://fhir.example/r4",
        "token_url": "https://login.example/token",
        "client_id": "fedthorax",
        "client_key": Path("keys/fhir-client.pem"),
        "scope": "system/Patient.read system/Observation.read system/Specimen.read system/DiagnosticReport.read",
    },
    "omop": {
        "host": "omop.example",
        "database": "omop",
        "user": "fedthorax",
        "password_file": Path("keys/omop-password"),
    },
}


def section(first: str, *, with_examples: bool) -> dict[str, Any]:
    """A commented section from the line `first`, as TOML; lines with a second # are examples."""
    block = TEMPLATE[TEMPLATE.index(f"# {first}\n") if f"# {first}\n" in TEMPLATE else TEMPLATE.index(f"# {first} ") :]
    lines = [line.removeprefix("#").removeprefix(" ") for line in block.split("\n\n")[0].splitlines()]
    if with_examples:
        lines = [line.removeprefix("# ") if " = " in line else line for line in lines]
    return tomllib.loads("\n".join(lines))


@pytest.mark.parametrize(
    ("first", "name", "model"),
    [
        ("[laboratory.listener]", "listener", ListenerTable),
        ("[fhir]", "fhir", FhirTable),
        ("[omop]", "omop", OmopTable),
    ],
)
def test_template_shows_the_defaults_and_explains_every_key(first: str, name: str, model: type[BaseModel]) -> None:
    def table(*, with_examples: bool) -> dict[str, Any]:
        found = section(first, with_examples=with_examples)
        return found.get("laboratory", found)[name]  # type: ignore[no-any-return]

    assert model.model_validate(table(with_examples=False)) == model.model_validate(EXAMPLES.get(name, {}))
    assert table(with_examples=True).keys() == model.model_fields.keys()


def test_examples_of_all_feeds_make_a_valid_site() -> None:
    omop = section("[outcomes]", with_examples=False)
    assert omop["outcomes"].keys() == OmopOutcomes.model_fields.keys() - {"file"}
    site = {
        "site": {"name": "ward"},
        "laboratory": {"format": "fhir"},
        **omop,
        **section("[fhir]", with_examples=False),
    }
    assert SiteSettings.model_validate(site).outcomes is not None
    received = section("[laboratory.listener]", with_examples=True)
    received["laboratory"]["format"] = "hl7"
    assert SiteSettings.model_validate({"site": {"name": "ward"}, "outcomes": {"file": "x"}, **received}).laboratory
