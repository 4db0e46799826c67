"""``stepwatch serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stepwatch.cli import errors
from stepwatch.cli.options import RULES, SETTINGS

if TYPE_CHECKING:
    from stepwatch.cli.serve.run_list import RunList


@click.command("serve")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; others than this machine's own need a token.",
)
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 is a free one.")
@RULES
@SETTINGS
@click.option("--open", "open_it", is_flag=True, help="Open it in the browser.")
@errors.one_line_errors
def command(
    directory: Path, host: str, port: int, rules: tuple[str, ...], settings: tuple[str, ...], open_it: bool
) -> None:
    """Show the runs below DIR in a browser, live and finished ones, until Ctrl-C.

    At an address that other machines reach, visitors need the token in the printed address: that of the environment
    variable STEPWATCH_TOKEN, or a new one.
    """
    import asyncio
    import secrets
    from urllib.parse import quote

    from stepwatch.rules.catalogue import configure

    if not directory.is_dir():
        errors.fail(f"{directory}: {'is a file; expected a directory' if directory.exists() else 'no such directory'}")
    with errors.extra("report", "the server"):
        from stepwatch.cli.serve.run_list import RunList
        from stepwatch.cli.serve.server import is_loopback, serve
    token = None if is_loopback(host) else os.environ.get("STEPWATCH_TOKEN") or secrets.token_urlsafe(24)

    async def run(runs: RunList) -> None:
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(runs, host, port, token, started))
        either: set[asyncio.Future[Any]] = {serving, started}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{started.result()}/" + (f"?token={quote(token)}" if token else "")
            click.echo(address)
            if open_it:
                click.launch(address)
        await serving

    errors.print_warnings_with_the_result()
    asyncio.run(run(RunList(directory, configure(list(rules) or None, list(settings)))))
