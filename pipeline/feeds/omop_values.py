"""What the value of a measurement or an observation in OMOP says about its event.

An observation "mechanical ventilation" with the value "No" is no event. Only concepts and numbers are interpreted: a
text can be in any language.
"""

from collections.abc import Sequence
from decimal import Decimal

# The columns, in the order of the arguments of `happened`. CDM 5.3 has no value_source_value in `observation`, and no
# version has value_as_string in `measurement`.
VALUE_COLUMNS = ("value_as_concept_id", "value_as_number", "value_as_string", "value_source_value")

# Standard concepts of the OMOP vocabulary (https://athena.ohdsi.org), with their codes in SNOMED and LOINC.
YES = frozenset({
    4188539,   # SNOMED 373066001 "Yes"
    4181412,   # SNOMED 52101004 "Present"
    9191,      # SNOMED 10828004 "Positive"
    45877994,  # LOINC LA33-6 "Yes"
    45884084,  # LOINC LA6576-8 "Positive"
})  # fmt: skip
NO = frozenset({
    4188540,   # SNOMED 373067005 "No"
    9189,      # SNOMED 260385009 "Negative"
    45878245,  # LOINC LA32-8 "No"
    45878583,  # LOINC LA6577-6 "Negative"
})  # fmt: skip


def happened(concept: int | None, number: Decimal | float | None, texts: Sequence[str | None]) -> bool | None:
    """Return whether an event with this value happened; None if that is uncertain.

    `concept`: 0 and None mean that there is none. If there is one, it decides, otherwise the number: one above 0 is the
    value of a ventilator, such as its pressure. 0 can be a measured value or mean "no".
    """
    if concept:
        return True if concept in YES else False if concept in NO else None
    if number is not None:
        return True if float(number) > 0 else None  # float: a comparison with Decimal("NaN") raises
    return None if any(text and text.strip() for text in texts) else True
