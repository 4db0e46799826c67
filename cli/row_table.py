"""Rows of any table in the terminal."""

from __future__ import annotations

import click
import pyarrow as pa
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from stepwatch.cli.render import console

_SHOWN_ROWS = 1000


def print_table(rows: pa.Table) -> None:
    """Print the first thousand rows under the names of their columns, folded where they are wider than the terminal."""
    shown = rows.slice(0, _SHOWN_ROWS)
    columns = [[field.name, *map(_spell, shown[at].to_pylist())] for at, field in enumerate(rows.schema)]
    numbers = [_is_number(field.type) for field in rows.schema]
    out = console()
    if not _print_lines(columns, numbers, out.width):
        out.print(_folded(columns, numbers))
    if rows.num_rows > _SHOWN_ROWS:
        out.print(f"... and {rows.num_rows - _SHOWN_ROWS} more rows; --csv prints all", style="dim")


def _is_number(kind: pa.DataType) -> bool:
    return any(is_it(kind) for is_it in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal))


def _print_lines(columns: list[list[str]], numbers: list[bool], width: int) -> bool:
    """Print a line per row, where each fits into one: a table of rich's takes 0.2 s for a thousand."""
    if any(not text.isprintable() for column in columns for text in column):
        return False
    widest = [max(map(cell_len, column)) for column in columns]
    if sum(widest) + 2 * len(widest) - 2 > width:
        return False
    for row in zip(*columns, strict=True):
        padded = []
        for text, number, cells in zip(row, numbers, widest, strict=True):
            space = " " * (cells - cell_len(text))
            padded.append(space + text if number else text + space)
        click.echo("  ".join(padded).rstrip())
    return True


def _folded(columns: list[list[str]], numbers: list[bool]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, number in zip(columns, numbers, strict=True):
        table.add_column(Text(column[0]), justify="right" if number else "left", overflow="fold")
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, row))
    return table


def _spell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
