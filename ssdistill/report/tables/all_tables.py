"""Every table that records give, in the order in which they are read."""

from collections.abc import Sequence
from typing import Any

from ssdistill.report.tables.models import results_table
from ssdistill.report.tables.paired import paired_table
from ssdistill.report.tables.protocols import protocols_table
from ssdistill.report.tables.rankings import rankings_table
from ssdistill.report.tables.steps import steps_table
from ssdistill.report.tables.table import Table


def all_tables(records: Sequence[dict[str, Any]], title: str = "") -> dict[str, Table]:
    """Return all tables by name, without those that these records have nothing for.

    Names are ``results``, ``protocols``, ``paired``, ``steps`` and ``rankings``.

    Args:
        title: of the table of results.
    """
    tables = {
        "results": results_table(records, title=title),
        "protocols": protocols_table(records),
        "paired": paired_table(records),
        "steps": steps_table(records),
        "rankings": rankings_table(records),
    }
    return {name: table for name, table in tables.items() if table}
