"""``stepwatch upload``."""

from __future__ import annotations

import click

from stepwatch.cli import errors


@click.command("upload")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@errors.one_line_errors
def command(urls: tuple[str, ...]) -> None:
    """Copy to an object store what jobs of this machine recorded for URL and could not copy themselves.

    A job that was killed, or ended while the store was away, leaves it in a folder of its machine.

    Exit status: 0 all of it is in the store, 2 nothing was recorded here for a URL, or the store refuses.
    """
    from stepwatch.probe.store.remote import is_url, replica_folder
    from stepwatch.probe.upload import finish_upload

    for url in urls:
        if not is_url(url):
            errors.fail(f"{url}: expected the URL of a run, such as s3://bucket/run")
        folder = replica_folder(url, "spool")
        if not folder.exists():
            errors.fail(f"{url}: nothing was recorded for it on this machine")
        click.echo(f"{url}: {finish_upload(url)} files copied")
