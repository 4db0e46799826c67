"""How often the rules are right, over whole training runs.

    python benchmarks/rule_accuracy.py [--seeds 0 1] [--interval 5] [--only TEXT] [--jobs 2] [--rules sagemaker]

    python benchmarks/rule_accuracy.py --only "held out" --seeds 0

Each job of the corpus is trained with each seed under a real hook, and its trace is analysed. Thresholds were chosen
with runs of corpus.py in view (seeds 0 and 1); those of corpus_held_out.py are for measurement alone.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from corpus import JOBS as TUNED
from corpus_held_out import JOBS as HELD_OUT

from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.replay import analyze

JOBS = (*TUNED, *HELD_OUT)
Outcome = tuple[str, int, list[tuple[str, str, int, str]]]


def judge(number: int, seed: int, interval: int, rules: str) -> Outcome:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    job = JOBS[number]
    run = Path(tempfile.mkdtemp()) / "run"
    try:
        job.train(seed, run, interval)
        found = analyze(Trace(run), configure([rules])).findings
    finally:
        shutil.rmtree(run.parent)
    return job.name, seed, [(f.rule, f.severity.value, f.last_step, f.message) for f in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--interval", type=int, default=5, help="save interval; 0 leaves it to the budget")
    parser.add_argument("--only", default="", help="jobs whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--rules", default="recommended", help="the set to judge with")
    options = parser.parse_args()
    chosen = [n for n, job in enumerate(JOBS) if options.only in job.name]
    work = [(n, seed, options.interval, options.rules) for n in chosen for seed in options.seeds]
    by_name = {job.name: job for job in JOBS}
    alarms = {"error": 0, "warning": 0, "info": 0}
    healthy = faulty = detected = alarmed = 0
    names = [spec.name for spec in configure([options.rules])]
    right, wrong = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    with ProcessPoolExecutor(options.jobs) as pool:
        for name, seed, found in pool.map(judge, *zip(*work, strict=True)):
            expected = by_name[name].expected
            rules = {rule for rule, *_ in found}
            if expected:
                faulty += 1
                hit = bool(rules & set(expected))
                detected += hit
                step = min((last for rule, _, last, _ in found if rule in expected), default=None)
                print(f"{'ok  ' if hit else 'MISS'} {name} [{seed}]: {', '.join(sorted(rules)) or 'nothing'} at {step}")
                for rule in rules:
                    right[rule] += rule in expected
            else:
                healthy += 1
                alarmed += bool(found)
                print(f"{'ALARM' if found else 'quiet'} {name} [{seed}]")
                for rule, severity, last, message in found:
                    alarms[severity] += 1
                    wrong[rule] += 1
                    print(f"      {severity} {rule} at {last}: {message}")
    print(
        f"\n{healthy} healthy runs, {alarmed} with an alarm: {alarms['error']} alarms of severity error, "
        f"{alarms['warning']} warnings"
    )
    print(f"{faulty} faulty runs: {detected} detected with a right label ({100 * detected / max(faulty, 1):.0f} %)")
    for rule in names:
        print(f"  {rule:26} right {right[rule]:3}  on healthy runs {wrong[rule]:3}")


if __name__ == "__main__":
    main()
