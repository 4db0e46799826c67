"""How often the rules are right, over whole training runs.

    python benchmarks/rule_accuracy.py [--part unseen] [--seeds 0 1] [--rules recommended sagemaker] [--only TEXT]

Each job of the corpus is trained with each seed under a real hook, and its trace is judged by each set of rules. With
the parts ``tuned`` and ``hard`` thresholds were chosen; ``held-out`` was first run before any rule knew of it, and has
been looked at since; so have ``unseen`` and ``recipes``, later. It ends with whether the targets are met, and with
status 1 where they are not. The label Overfit is
that of the run itself: where its evaluation loss ended a third above its best.
"""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch
from corpus import JOBS as TUNED
from corpus import Job
from corpus_hard import JOBS as HARD
from corpus_held_out import JOBS as HELD_OUT
from corpus_recipes import JOBS as RECIPES
from corpus_unseen import JOBS as UNSEEN

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.diagnosis import diagnose
from stepwatch.rules.finding import Finding
from stepwatch.rules.replay import analyze
from stepwatch.rules.step import is_loss

PARTS = {"tuned": TUNED, "hard": HARD, "held-out": HELD_OUT, "unseen": UNSEEN, "recipes": RECIPES}
ALARMS, RECALL, DELAY = 0.01, 0.95, 0.15
"""Targets: alarms of severity error per healthy run, share of mistakes found, median delay as a share of the steps."""

COUNTERPARTS = {
    name: tuple(others.split())
    for name, others in {
        "StalledLoss": "LossNotDecreasing",
        "DivergingLoss": "LossNotDecreasing ExplodingTensor",
        "OscillatingLoss": "LossNotDecreasing",
        "LossSpike": "LossNotDecreasing",
        "NoBetterThanGuessing": "LossNotDecreasing",
        "LabelsLookShuffled": "Overfit Overtraining",
        "Overfit": "Overtraining",
        "NonFiniteInput": "ExplodingTensor",
        "ZeroLearningRate": "UnchangedTensor WeightUpdateRatio LossNotDecreasing",
        "UpdateTooLarge": "WeightUpdateRatio",
        "UpdateTooSmall": "WeightUpdateRatio UnchangedTensor",
        "UnchangedTensor": "WeightUpdateRatio",
        "NoGradient": "VanishingGradient UnchangedTensor",
        "LabelsInOrder": "ClassImbalance",
        "CollapsedOutput": "TensorVariance",
        "ConstantInput": "TensorVariance",
        "InputNotNormalized": "CheckInputImages PoorWeightInitialization",
    }.items()
}
"""By rule of ``recommended`` the rules of ``sagemaker`` that mean the same or nearly so, beside one of that name."""


@dataclass(frozen=True)
class Verdict:
    """What one set of rules said of one run of so many steps."""

    job: Job
    seed: int
    steps: int
    findings: Sequence[Finding]

    def labels(self, rules: str) -> set[str]:
        """Rules of a set that name the mistake."""
        names = set(self.job.expected)
        if rules == "sagemaker":
            names |= {other for name in self.job.expected for other in COUNTERPARTS.get(name, ())}
        return names

    def right(self, rules: str) -> list[Finding]:
        """Findings of a set of rules that name the mistake."""
        names = self.labels(rules)
        return [finding for finding in self.findings if finding.rule in names]

    def first(self) -> str:
        """The cause of the first diagnosis: the line that a tired person reads."""
        return next((diagnosis.cause.rule for diagnosis in diagnose(self.findings)), "nothing")

    def delay(self, rules: str) -> float:
        """How late the first of them came, as a share of the steps since the mistake can be seen."""
        first = min(finding.last_step for finding in self.right(rules))
        return max(first - self.job.since, 0) / max(self.steps - self.job.since, 1)


def judge(job: tuple[str, int], seed: int, interval: int, sets: Sequence[str]) -> dict[str, Verdict]:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    part, number = job
    chosen = PARTS[part][number]
    run = Path(tempfile.mkdtemp()) / "run"
    try:
        chosen.train(seed, run, interval)
        trace = Trace(run)
        steps = len(trace.table("steps", modes=["TRAIN"]))
        best, rose = evaluations(trace)
        overfits = chosen.expected == ("Overfit",)
        if overfits and not rose:
            return {}  # not with this seed
        nameless = Job(chosen.name, print, chosen.expected, best if overfits else chosen.since)  # without what trains
        found = {each: analyze(trace, configure([each])).findings for each in sets}
        if rose and not chosen.expected:  # whether that is worth a word is no question of right or wrong
            found = {each: [f for f in findings if f.rule != "Overfit"] for each, findings in found.items()}
        return {each: Verdict(nameless, seed, steps, findings) for each, findings in found.items()}
    finally:
        shutil.rmtree(run.parent)


def evaluations(trace: Trace) -> tuple[int, bool]:
    """The step of the best evaluation, and whether the last three lie a third or more above it in the median."""
    losses: dict[int, list[float]] = {}
    for row in trace.table("scalars", modes=["EVAL"]).to_pylist():
        if is_loss(row["name"]):
            losses.setdefault(row["step"], []).append(row["value"])
    means = {step: mean(values) for step, values in losses.items()}
    if len(means) < 6 or not all(math.isfinite(value) for value in means.values()):
        return 0, False
    best = min(means, key=lambda step: means[step])
    return best, median(list(means.values())[-3:]) > 4 / 3 * means[best] > 0


def between(hits: int, count: int) -> str:
    """A share and its 95 % interval (Wilson 1927)."""
    if not count:
        return "none"
    share, z = hits / count, 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return f"{hits}/{count} = {100 * share:.1f} % ({100 * low:.0f} to {100 * high:.0f} %)"


def tell(verdict: Verdict, rules: str) -> None:
    """One run, in a line or more."""
    name = f"{verdict.job.name} [{verdict.seed}]"
    if verdict.job.expected:
        right = verdict.right(rules)
        at = f"{min(f.last_step for f in right)} of {verdict.steps}" if right else f"none of {verdict.steps}"
        others = ", ".join(sorted({finding.rule for finding in verdict.findings} - {verdict.first()}))
        mark = "MISS" if not right else "ok  " if verdict.first() in verdict.labels(rules) else "2nd "
        print(f"{mark} {name}: {verdict.first()} first{others and ', then '}{others}, at {at}", flush=True)
        return
    print(f"{'ALARM' if verdict.findings else 'quiet'} {name}", flush=True)
    for finding in verdict.findings:
        print(f"      {finding.severity.value} {finding.rule} at {finding.last_step}: {finding.message}", flush=True)


def table(verdicts: Iterable[Verdict], rules: str) -> None:
    """By rule: how often it fired rightly and wrongly, and how many mistakes that are its own it found."""
    verdicts = list(verdicts)
    print("| rule | mistakes it named | healthy runs it fired on | precision | recall of its own | median step |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in dict.fromkeys(spec.name for spec in configure([rules])):
        right = [v for v in verdicts if any(finding.rule == name for finding in v.right(rules))]
        wrong = sum(not v.job.expected and any(f.rule == name for f in v.findings) for v in verdicts)
        own = [v for v in verdicts if v.job.expected == (name,)]
        if not (right or wrong or own):
            continue
        found = sum(any(finding.rule == name for finding in v.findings) for v in own)
        steps = [min(f.last_step for f in v.findings if f.rule == name) for v in right]
        precision = f"{100 * len(right) / (len(right) + wrong):.0f} %" if right or wrong else ""
        recall = f"{found}/{len(own)}" if own else ""
        print(f"| {name} | {len(right)} | {wrong} | {precision} | {recall} | {median(steps) if steps else ''} |")


def summary(verdicts: Sequence[Verdict], rules: str) -> bool:
    """Print the figures of a set of rules; whether it meets the targets."""
    healthy = [v for v in verdicts if not v.job.expected]
    faulty = [v for v in verdicts if v.job.expected]
    found = [v for v in faulty if v.right(rules)]
    print(f"\n{rules}: {len(healthy)} healthy runs, {len(faulty)} with a mistake\n")
    table(verdicts, rules)
    alarmed = {
        severity: sum(any(f.severity.value == severity for f in v.findings) for v in healthy)
        for severity in ("error", "warning", "info")
    }
    delay = median(v.delay(rules) for v in found) if found else math.inf
    print(f"\nhealthy runs with a finding of severity error: {between(alarmed['error'], len(healthy))}")
    print(f"healthy runs with one of severity warning: {between(alarmed['warning'], len(healthy))}")
    print(f"healthy runs with one of severity info: {between(alarmed['info'], len(healthy))}")
    print(f"mistakes found with a right label: {between(len(found), len(faulty))}")
    first = sum(v.first() in v.labels(rules) for v in faulty)
    print(f"mistakes whose first diagnosis is a right label: {between(first, len(faulty))}")
    print(f"median delay: {100 * delay:.1f} % of the steps since the mistake can be seen")
    met = {
        f"at most {100 * ALARMS:.0f} healthy run in 100 with an error": alarmed["error"] <= ALARMS * len(healthy),
        f"at least {100 * RECALL:.0f} % found": len(found) >= RECALL * len(faulty),
        f"median delay within {100 * DELAY:.0f} %": not faulty or delay <= DELAY,
    }
    for target, reached in met.items():
        print(f"{rules}: {'met    ' if reached else 'NOT MET'} {target}")
    return all(met.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="parts of the corpus; all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--interval", type=int, default=5, help="save interval; 0 leaves it to the budget")
    parser.add_argument("--only", default="", help="jobs whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--rules", nargs="+", default=["recommended"], help="the sets or rules to judge with")
    options = parser.parse_args()
    chosen = [(part, n) for part in options.part for n, job in enumerate(PARTS[part]) if options.only in job.name]
    if not chosen:
        parser.error(f"--only {options.only}: no job of {', '.join(options.part)} has such a name")
    work = [(job, seed, options.interval, options.rules) for job in chosen for seed in options.seeds]
    verdicts: dict[str, list[Verdict]] = {rules: [] for rules in options.rules}
    with ProcessPoolExecutor(options.jobs) as pool:
        for each in pool.map(judge, *zip(*work, strict=True)):
            for rules, verdict in each.items():
                verdicts[rules].append(verdict)
                if rules == options.rules[0]:
                    tell(verdict, rules)
    met = [summary(verdicts[rules], rules) for rules in options.rules]
    return 0 if met[0] else 1


if __name__ == "__main__":
    sys.exit(main())
