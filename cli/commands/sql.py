"""``stepwatch sql``."""

from __future__ import annotations

import csv
import sys
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from types import NoneType

import click

from stepwatch.cli import errors
from stepwatch.cli.progress import busy
from stepwatch.cli.runs import RUN_PATH


@click.command("sql")
@click.argument("query")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=RUN_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of objects.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header.")
@errors.one_line_errors
def command(query: str, runs: tuple[Path, ...], as_json: bool, as_csv: bool) -> None:
    """Answer a SELECT QUERY over runs.

    A RUN is a run, a directory that holds runs, or a quoted pattern such as 'runs/*/seed-?'. The views are runs,
    tensors, stats, derived, values, scalars, steps, system and findings; "DESCRIBE stats" lists columns. The query
    can read nothing else and change nothing.
    """
    from stepwatch.cli.render import print_json
    from stepwatch.cli.row_table import print_table
    from stepwatch.rules.sql import Database

    if as_json and as_csv:
        errors.fail("--json and --csv exclude each other")
    errors.print_warnings_with_the_result()
    database = Database(runs)
    with busy("answering the query"):
        rows = database.query(query)
    if as_json:
        print_json([{name: _plain(value) for name, value in row.items()} for row in rows.to_pylist()])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows.column_names)
        for batch in rows.to_batches():
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    else:
        print_table(rows)
    for warning in database.warnings:
        click.echo(f"stepwatch: {warning}", err=True)


def _plain(value: object) -> object:
    """As JSON has it: sums of integers are decimals here, bytes become hexadecimal digits, times ISO 8601."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (dict, list, str, int, float, NoneType)):
        return value
    return value.isoformat() if isinstance(value, (date, time)) else str(value)
