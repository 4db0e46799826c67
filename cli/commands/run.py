"""``stepwatch run``."""

from __future__ import annotations

import importlib.util
from typing import Any

import click

from stepwatch.cli import errors


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-o", "--out", help="Directory or URL of the run; runs/SCRIPT-TIME by default.")
@click.option("-m", "--module", is_flag=True, help="SCRIPT is a module's name, as with python -m.")
@click.option(
    "--save-interval", type=click.IntRange(min=1), help="Save every so many steps; chosen by cost by default."
)
@click.option(
    "--profile-steps", metavar="FIRST:END", help="Record these steps by torch.profiler: 100:103 are 100, 101 and 102."
)
@click.option("--ranks", help="Ranks to record: all (default), first, node, or numbers (0,8).")
@click.option(
    "--request",
    metavar="FILE",
    help="Record and judge as a CreateTrainingJob request says: a JSON file, or sagemaker://JOB.",
)
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
    profile_steps: str | None,
    ranks: str | None,
    request: str | None,
    rules: tuple[str, ...],
    stop: bool,
    webhook: str | None,
    tags: tuple[str, ...],
    script: str,
    args: tuple[str, ...],
) -> None:
    """Record SCRIPT with its ARGS, which is not changed for it and sees argv as without us.

    In a SageMaker container it records as the container's configuration says, where the service collects it.

    Exit status: the script's; 1 when a rule stopped it.
    """
    settings, own_rules = _configured(request)
    chosen, actions = _prepare(rules or own_rules, stop, webhook, tags)
    if ranks:
        settings["ranks"] = _spell_ranks(ranks)
    if profile_steps:
        settings["profile_steps"] = _spell_steps(profile_steps)
    collected = settings.pop("out_dir", None)
    try:
        with errors.extra("torch", "recording"):
            from stepwatch.probe import SaveConfig
            from stepwatch.probe.launch import LaunchError, default_run_dir, launch
            from stepwatch.probe.smdebug.hook import get_hook
    except ImportError as error:
        errors.fail(error)

    if save_interval:
        settings["save_config"] = SaveConfig(save_interval=save_interval)

    _provide_smdebug()
    try:
        run_dir = out or collected or default_run_dir(script)
        settings |= {"rules": chosen, "actions": actions, "tags": tags}
        status = launch(
            script,
            list(args),
            module=module,
            out_dir=run_dir,
            options=settings,
            has_own_hook=lambda: get_hook() is not None,  # smdebug's
        )
    except LaunchError as error:
        errors.fail(error)
    raise SystemExit(status)


@errors.one_line_errors
def _configured(request: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Arguments of the hook, and rules: of a request, or of the container."""
    from stepwatch.probe import sagemaker

    if request is None:
        return (sagemaker.container_configuration() if sagemaker.in_container() else {}), ()
    from stepwatch.rules.service.request import RULE_LISTS, read_request

    content = read_request(request)
    settings = sagemaker.request_configuration(content)
    if not sagemaker.in_container():
        settings.pop("out_dir", None)  # a path in the container
    return settings, (request,) if any(content.get(key) for key in RULE_LISTS) else ()


def _provide_smdebug() -> None:
    """Scripts that import smdebug find ours, unless theirs is installed."""
    from stepwatch.rules.smdebug import install

    if importlib.util.find_spec("smdebug") is None:
        install()


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
def _spell_steps(steps: str) -> range:
    first, _, end = steps.partition(":")
    if not (first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        errors.fail(f"--profile-steps is {steps!r}; expected FIRST:END, such as 100:103")
    return range(int(first), int(end))


@errors.one_line_errors
def _spell_ranks(ranks: str) -> Any:
    numbers = ranks.split(",")
    spelled = [int(number) for number in numbers] if all(number.strip().isdigit() for number in numbers) else ranks
    if spelled not in ("all", "first", "node") and (isinstance(spelled, str) or 0 not in spelled):
        errors.fail(f"--ranks is {ranks!r}; expected all, first, node, or numbers with 0 among them, such as 0,8")
    return spelled
