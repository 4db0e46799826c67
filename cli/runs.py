"""Runs as arguments of commands: directories, and places in an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


class RunPath(click.ParamType):  # type: ignore[type-arg]
    """A directory; of what a URL (``s3://bucket/run``) names, the local copy, brought up to date."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The directory.

        Raises:
            click.BadParameter: what the URL names cannot be read.
        """
        if isinstance(value, Path) or "://" not in str(value):
            return Path(value)
        from stepwatch.probe.store.errors import TraceError
        from stepwatch.probe.store.remote import local_copy

        try:
            return local_copy(str(value))
        except TraceError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Directories, by the shell itself."""
        return complete_directories(ctx, param, incomplete)


def complete_directories(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What a shell offers for a run: directories."""
    return [CompletionItem(incomplete, type="dir")]


RUN_PATH = RunPath()
