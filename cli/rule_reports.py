"""Reports that rules ask for: SageMaker's CreateXgboostReport."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepwatch.cli import errors
from stepwatch.rules.sagemaker.trees import CreateXgboostReport

if TYPE_CHECKING:
    from stepwatch.rules.catalogue import RuleSpec
    from stepwatch.rules.finding import RuleResult

REPORT = Path("rule-output", "CreateXgboostReport", "xgboost_report.html")
"""Where it is in a run, as below the output of a SageMaker job."""


def write_rule_reports(run: Path, specs: Sequence[RuleSpec], results: Sequence[RuleResult]) -> Iterator[Path]:
    """Write what the rules ask for into the run; yields the files.

    Args:
        run: directory of the run.
        specs: the rules that it was judged with.
        results: their verdicts; a rule that found nothing recorded gets no report.

    Raises:
        OSError: it cannot be written.
    """
    asking = {spec.name for spec in specs if issubclass(spec.rule, CreateXgboostReport)}
    if not any(result.rule in asking and result.coverage.steps for result in results):
        return
    from stepwatch.probe.store.reader import Trace

    with errors.extra("report", "CreateXgboostReport"):
        from stepwatch.cli.report.page import write_report
    output = run / REPORT
    output.parent.mkdir(parents=True, exist_ok=True)
    yield write_report(Trace(run), output, specs)
