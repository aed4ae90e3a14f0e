"""The tables of OMOP CDM 5.4 that outcomes come from, in PostgreSQL: the published columns with their types.

https://ohdsi.github.io/CommonDataModel/cdm54.html. `!` marks a column that must not be empty.
"""

from typing import Any

import pg8000.native

_TYPES = {
    "date": "date",
    "datetime": "timestamp",
    "value": "varchar(50)",
    "reason": "varchar(20)",
    "time": "varchar(10)",
}
_PLACE = "provider_id visit_occurrence_id visit_detail_id"
_COLUMNS = {
    "person": """person_id! gender_concept_id! year_of_birth! month_of_birth day_of_birth birth_datetime
        race_concept_id! ethnicity_concept_id! location_id provider_id care_site_id person_source_value
        gender_source_value gender_source_concept_id race_source_value race_source_concept_id ethnicity_source_value
        ethnicity_source_concept_id""",
    "visit_occurrence": """visit_occurrence_id! person_id! visit_concept_id! visit_start_date! visit_start_datetime
        visit_end_date! visit_end_datetime visit_type_concept_id! provider_id care_site_id visit_source_value
        visit_source_concept_id admitted_from_concept_id admitted_from_source_value discharged_to_concept_id
        discharged_to_source_value preceding_visit_occurrence_id""",
    "visit_detail": """visit_detail_id! person_id! visit_detail_concept_id! visit_detail_start_date!
        visit_detail_start_datetime visit_detail_end_date! visit_detail_end_datetime visit_detail_type_concept_id!
        provider_id care_site_id visit_detail_source_value visit_detail_source_concept_id admitted_from_concept_id
        admitted_from_source_value discharged_to_source_value discharged_to_concept_id preceding_visit_detail_id
        parent_visit_detail_id visit_occurrence_id!""",
    "condition_occurrence": f"""condition_occurrence_id! person_id! condition_concept_id! condition_start_date!
        condition_start_datetime condition_end_date condition_end_datetime condition_type_concept_id!
        condition_status_concept_id stop_reason {_PLACE} condition_source_value condition_source_concept_id
        condition_status_source_value""",
    "procedure_occurrence": f"""procedure_occurrence_id! person_id! procedure_concept_id! procedure_date!
        procedure_datetime procedure_end_date procedure_end_datetime procedure_type_concept_id! modifier_concept_id
        quantity {_PLACE} procedure_source_value procedure_source_concept_id modifier_source_value""",
    "device_exposure": f"""device_exposure_id! person_id! device_concept_id! device_exposure_start_date!
        device_exposure_start_datetime device_exposure_end_date device_exposure_end_datetime device_type_concept_id!
        unique_device_id:varchar(255) production_id:varchar(255) quantity {_PLACE} device_source_value
        device_source_concept_id unit_concept_id unit_source_value unit_source_concept_id""",
    "measurement": f"""measurement_id! person_id! measurement_concept_id! measurement_date! measurement_datetime
        measurement_time measurement_type_concept_id! operator_concept_id value_as_number:numeric value_as_concept_id
        unit_concept_id range_low:numeric range_high:numeric {_PLACE} measurement_source_value
        measurement_source_concept_id unit_source_value unit_source_concept_id value_source_value measurement_event_id
        meas_event_field_concept_id""",
    "observation": f"""observation_id! person_id! observation_concept_id! observation_date! observation_datetime
        observation_type_concept_id! value_as_number:numeric value_as_string:varchar(60) value_as_concept_id
        qualifier_concept_id unit_concept_id {_PLACE} observation_source_value observation_source_concept_id
        unit_source_value qualifier_source_value value_source_value observation_event_id obs_event_field_concept_id""",
    "death": """person_id! death_date! death_datetime death_type_concept_id cause_concept_id cause_source_value
        cause_source_concept_id""",
    "concept": """concept_id! concept_name!:varchar(255) domain_id!:varchar(20) vocabulary_id!:varchar(20)
        concept_class_id!:varchar(20) standard_concept:varchar(1) concept_code!:varchar(50) valid_start_date!
        valid_end_date! invalid_reason:varchar(1)""",
}  # fmt: skip


def _definition(column: str) -> str:
    name, _, given = column.partition(":")
    kind = given or _TYPES.get(name.strip("!").rpartition("_")[2], "integer")
    return f"{name.strip('!')} {kind} {'NOT NULL' if '!' in name else ''}"


class Cdm54:
    """The tables in one schema of a database, empty at first."""

    def __init__(self, connection: pg8000.native.Connection, schema: str) -> None:
        self._run, self._schema, self._rows = connection.run, schema, 0
        self._run(f"CREATE SCHEMA {schema}")
        for table, columns in _COLUMNS.items():
            self._run(f"CREATE TABLE {schema}.{table} ({', '.join(map(_definition, columns.split()))})")

    def add(self, table: str, **values: Any) -> None:
        """Add a row; columns that must not be empty are 0 unless given, the row's own id is its number."""
        self._rows += 1
        needed = [name.partition(":")[0].strip("!") for name in _COLUMNS[table].split() if "!" in name]
        row = {**dict.fromkeys(needed, 0), **({} if needed[0] in values else {needed[0]: self._rows}), **values}
        names = ", ".join(row)
        self._run(
            f"INSERT INTO {self._schema}.{table} ({names}) VALUES ({', '.join(f':{name}' for name in row)})", **row
        )
