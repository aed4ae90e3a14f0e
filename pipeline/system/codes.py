"""Every reason of the hospital's data by its code, as files and tables store it."""

from models.reason_tables import reasons_in, tables

BY_CODE = {
    reason.code: reason
    for reason in reasons_in(*(table for room, table in tables("pipeline").items() if room != "clinic"))
}
