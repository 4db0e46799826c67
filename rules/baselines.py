"""Which run the rules hold a run against, where nobody named one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stepwatch.probe.store.labels import baseline_of, is_baseline
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.recommended.baseline import WorseThanBaseline


def beside_baseline(specs: Sequence[RuleSpec], run: Path) -> list[RuleSpec]:
    """The rules for a run: that which compares is given the baseline that is marked in the run's directory."""
    marked = baseline_of(Path(run).absolute().parent)
    if marked is None or is_baseline(run):
        return list(specs)
    return [
        replace(spec, parameters={**spec.parameters, "baseline": str(marked)})
        if spec.rule is WorseThanBaseline and not spec.parameters.get("baseline")
        else spec
        for spec in specs
    ]
