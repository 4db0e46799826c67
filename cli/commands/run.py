"""``stepwatch run``."""

from __future__ import annotations

from typing import Any

import click

from stepwatch.cli import errors


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "--out", help="Directory or URL of the run; runs/SCRIPT-TIME by default.")
@click.option("-m", "--module", is_flag=True, help="SCRIPT is a module's name, as with python -m.")
@click.option(
    "--save-interval", type=click.IntRange(min=1), help="Save every so many steps; chosen by cost by default."
)
@click.option("--ranks", default="all", show_default=True, help="Ranks to record: all, first, node, or numbers (0,8).")
@click.option("--rules", "rules", multiple=True, metavar="NAMES", help="Judge while it runs, with these rules or sets.")
@click.option("--stop", "stop", is_flag=True, help="Stop the script when a rule finds an error.")
@click.option("--webhook", metavar="URL", help="Post findings as JSON.")
@click.option("--tag", "tags", multiple=True, help="A word by which the run is found again; may be repeated.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(
    out: str | None,
    module: bool,
    save_interval: int | None,
    ranks: str,
    rules: tuple[str, ...],
    stop: bool,
    webhook: str | None,
    tags: tuple[str, ...],
    script: str,
    args: tuple[str, ...],
) -> None:
    """Record SCRIPT with its ARGS, which is not changed for it and sees argv as without us.

    Exit status: the script's; 1 when a rule stopped it.
    """
    chosen, actions = _prepare(rules, stop, webhook, tags)
    recorded = _spell_ranks(ranks)
    try:
        from stepwatch.probe import Hook, SaveConfig
        from stepwatch.probe.launch import LaunchError, default_run_dir, launch
        from stepwatch.probe.store.errors import TraceError
    except ImportError as error:
        errors.fail(error)

    def make_hook() -> Hook:
        config = SaveConfig(save_interval=save_interval) if save_interval else None
        try:
            return Hook(run_dir, save_config=config, rules=chosen, actions=actions, ranks=recorded, tags=tags)
        except TraceError as error:
            errors.fail(error)

    try:
        run_dir = out or default_run_dir(script)
        status = launch(script, list(args), module=module, make_hook=make_hook)
    except LaunchError as error:
        errors.fail(error)
    raise SystemExit(status)


@errors.one_line_errors
def _prepare(
    rules: tuple[str, ...], stop: bool, webhook: str | None, tags: tuple[str, ...]
) -> tuple[list[str] | None, list[str]]:
    from stepwatch.probe.store.labels import checked_tags
    from stepwatch.rules.catalogue import configure

    checked_tags(tags)
    actions = (["stop"] if stop else []) + ([webhook] if webhook else [])
    chosen = list(rules) or (["recommended"] if actions else None)
    if chosen:
        configure(chosen)
    return chosen, actions


@errors.one_line_errors
def _spell_ranks(ranks: str) -> Any:
    numbers = ranks.split(",")
    spelled = [int(number) for number in numbers] if all(number.strip().isdigit() for number in numbers) else ranks
    if spelled not in ("all", "first", "node") and (isinstance(spelled, str) or 0 not in spelled):
        errors.fail(f"--ranks is {ranks!r}; expected all, first, node, or numbers with 0 among them, such as 0,8")
    return spelled
