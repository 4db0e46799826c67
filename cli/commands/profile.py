"""``stepwatch profile``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stepwatch.cli import errors
from stepwatch.cli.runs import RUN_PATH

if TYPE_CHECKING:
    from stepwatch.probe.store.reader import Trace

_POLL_SECONDS = 0.1


@click.command("profile")
@click.argument("run", type=RUN_PATH)
@click.option("--steps", type=int, metavar="N", help="Profile the next N steps of a running job, and show them.")
@click.option("--rank", "ranks", type=int, multiple=True, help="Ranks that are profiled or shown; the lowest, or all.")
@click.option("--all-ranks", is_flag=True, help="With --steps: profile all ranks.")
@click.option("--reason", default="asked for by a person", show_default=True, help="Recorded with the profile.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    help="With --steps: seconds to wait for each sign of life; 0: do not wait.",
)
@click.option("--at", "step", type=int, metavar="STEP", help="Show the profile that begins there, not the latest.")
@click.option("--top", type=click.IntRange(min=1), default=15, show_default=True, help="Rows of each table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@errors.one_line_errors
def command(
    run: Path,
    steps: int | None,
    ranks: tuple[int, ...],
    all_ranks: bool,
    reason: str,
    wait: float,
    step: int | None,
    top: int,
    as_json: bool,
) -> None:
    """Show what torch.profiler recorded of some steps of a RUN, or have it record some now.

    With --steps the running job profiles its next steps: between two steps torch.profiler is started and stopped in
    the process, its trace is kept in the run, and its summary is shown. The job goes on.

    Exit status: 0 shown (or asked, with --wait 0), 1 the steps were not profiled, 2 unusable arguments or input.
    """
    from stepwatch.probe.store.reader import Trace

    trace = Trace(run)
    if steps is None:
        if all_ranks:
            errors.fail("--all-ranks goes with --steps")
    else:
        if step is not None:
            errors.fail("--at shows a profile that is there; it does not go with --steps")
        step = _profile(trace, steps, _chosen(trace, ranks, all_ranks), reason, wait)
        if step is None:
            click.echo(f"{run}: asked for a profile of {steps} step{'s' if steps != 1 else ''}")
            return
        ranks = _chosen(trace, ranks, all_ranks)
    _show(trace, step, ranks, top, as_json)


def _chosen(trace: Trace, ranks: tuple[int, ...], all_ranks: bool) -> tuple[int, ...]:
    known = trace.ranks
    for rank in ranks:
        if rank not in known:
            errors.fail(f"{trace.source}: has no rank {rank}; expected one of {', '.join(map(str, known)) or 'none'}")
    return tuple(known) if all_ranks else ranks or tuple(known[:1])


def _profile(trace: Trace, steps: int, ranks: Sequence[int], reason: str, wait: float) -> int | None:
    """Have steps profiled; returns the first one once all ranks have answered, or None where nobody waits for it."""
    from stepwatch.probe.store.identity import process_identity
    from stepwatch.probe.store.profile_requests import read_profile_answer, request_profile

    if not trace.live():
        errors.fail(f"{trace.source}: the run is not live; there is nothing to profile")
    request = request_profile(trace.path, steps, ranks, reason, by=process_identity()["user"])
    if not wait:
        return None
    first: int | None = None
    said: dict[int, str] = {}
    deadline = time.monotonic() + wait
    try:
        while True:
            live = trace.live()  # asked first: a job answers before it ends
            for rank in ranks:
                answer = read_profile_answer(trace.path, rank)
                if answer is None or answer.request_id != request or said.get(rank) == answer.state:
                    continue
                said[rank] = answer.state
                deadline = time.monotonic() + wait
                if answer.state == "refused":
                    errors.fail(f"rank {rank} did not profile: {answer.detail}", errors.ISSUES_FOUND)
                click.echo(f"rank {rank} {_SPELLED.get(answer.state, answer.state)}: {answer.detail}", err=True)
                first = answer.step if first is None else first
            if all(said.get(rank) == "done" for rank in ranks):
                return first
            if not live:
                errors.fail(f"{trace.source}: the job ended without an answer", errors.ISSUES_FOUND)
            if time.monotonic() > deadline:
                errors.fail(
                    f"{trace.source}: nothing was heard for {wait:g} s (no step has ended?); the request stands",
                    errors.ISSUES_FOUND,
                )
            time.sleep(_POLL_SECONDS)
            trace.refresh()
    except KeyboardInterrupt:
        errors.fail("interrupted; the job profiles the steps all the same", errors.INTERRUPTED)


_SPELLED = {"running": "profiles", "done": "has profiled"}


def _show(trace: Trace, step: int | None, ranks: tuple[int, ...], top: int, as_json: bool) -> None:
    from stepwatch.cli.profiles import print_profile, print_ranks, profile_json
    from stepwatch.cli.render import console, print_json
    from stepwatch.probe.store.profiles import profiles_of

    there = profiles_of(trace.path)
    if not there:
        errors.fail(f"{trace.source}: no step was profiled; --steps 3 profiles the next three of a running job")
    known = sorted({profile.step for profile in there})
    if step is None:
        step = known[-1]
    shown = [profile for profile in there if profile.step == step and (not ranks or profile.rank in ranks)]
    if not shown:
        of = f" of rank {', '.join(map(str, ranks))}" if ranks else ""
        errors.fail(f"{trace.source}: no profile{of} begins at step {step}; expected one of {_listed(known)}")
    if as_json:
        print_json([profile_json(profile, profile.summary()) for profile in shown])
        return
    out = console()
    summaries = [profile.summary() for profile in shown]
    for number, (profile, summary) in enumerate(zip(shown, summaries, strict=True)):
        if number:
            out.print()
        print_profile(out, profile, summary, top)
    if len(shown) > 1:
        print_ranks(out, summaries)
    if len(known) > 1:
        out.print(f"\nprofiles begin at steps {_listed(known)}; --at shows another", style="dim")


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))
