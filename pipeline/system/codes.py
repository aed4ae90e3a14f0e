"""Maps the codes stored in files and tables to the reasons about a hospital's data."""

from models.reason_tables import reasons_in, tables

BY_CODE = {
    reason.code: reason
    for reason in reasons_in(*(table for room, table in tables("pipeline").items() if room.split(".")[0] != "clinic"))
}
