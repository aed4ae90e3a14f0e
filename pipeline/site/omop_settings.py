"""Defines the table [omop] of site.toml: the database in the OMOP common data model from which outcomes are fetched."""

from pathlib import Path

from pydantic import BaseModel, Field


class OmopTable(BaseModel, extra="forbid"):
    """[omop]: a PostgreSQL database with OMOP CDM 5.3 or 5.4. Other machines are reached only over TLS.

    `patient_id`: the column of `person` with the identifier that the scans have in PatientID.
    """

    host: str = Field(min_length=1)
    port: int = Field(default=5432, ge=1, le=65535)
    database: str = Field(min_length=1)
    user: str = Field(min_length=1)
    password_file: Path
    cdm_schema: str = Field(default="cdm", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}$")
    vocabulary_schema: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,62})?$")  # empty: cdm_schema
    patient_id: str = Field(default="person_source_value", pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    ca_certificate: Path | None = None  # of the hospital's certificate authority; public authorities if None
    timeout_seconds: float = Field(default=600, gt=0)  # for one query
