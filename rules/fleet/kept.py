"""What was found in runs, kept in a file, so that only those that have changed are judged again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from stepwatch.probe.store.errors import TraceError
from stepwatch.probe.store.places import files_of
from stepwatch.rules.catalogue import RuleSpec
from stepwatch.rules.finding import Coverage, Finding, RuleResult, Severity, Status
from stepwatch.rules.fleet.judged import Judged, Place
from stepwatch.rules.replay import Analysis


class KeptResults:
    """A JSONL file of verdicts, one line per run and time that it was judged; the last one counts.

    A line counts as long as the run's files are what they were, and the rules, their parameters and the version of
    Stepwatch are the same. A line that was cut off when a process was killed is removed.

    Args:
        path: the file; made where there is none.
        specs: the rules.

    Raises:
        ValueError: the file holds something else.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, specs: Sequence[RuleSpec]) -> None:
        self._rules = _of_rules(specs)
        self._known: dict[str, dict[str, Any]] = {}
        self._stamps: dict[Place, str] = {}
        self._file = path.open("a+b")
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                self._file.truncate(whole)
                break
            whole += len(line)
            entry = _parsed(line)
            if entry is None:
                raise ValueError(f"{path}: line {number + 1} is not a verdict; expected a file of --results")
            self._known[entry["run"]] = entry

    def __enter__(self) -> KeptResults:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def recall(self, runs: Sequence[Place]) -> Iterator[Judged]:
        """What is known of those runs that have not changed since."""
        for run in runs:
            try:
                stamp = _stamp(run)
            except (TraceError, OSError):
                continue
            self._stamps[run] = stamp
            entry = self._known.get(str(run))
            if entry is not None and (entry["files"], entry["rules"]) == (stamp, self._rules):
                yield _judged(run, entry["judged"])

    def keep(self, judged: Judged) -> None:
        """Write down what was found in a run, unless it still grows or could not be judged."""
        stamp = self._stamps.get(judged.run)
        if judged.analysis is None or judged.analysis.live or stamp is None:
            return
        entry = {"run": str(judged.run), "files": stamp, "rules": self._rules, "judged": _to_json(judged)}
        line = json.dumps(entry, separators=(",", ":"), allow_nan=False)
        self._file.write(f"{line}\n".encode())
        self._file.flush()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
        if {"run", "files", "rules", "judged"} <= set(entry):
            return dict(entry)
    except (ValueError, TypeError):
        pass
    return None


def _stamp(run: Place) -> str:
    """Another one whenever what is judged of a run has changed."""
    return hashlib.sha256(json.dumps(sorted(files_of(run))).encode()).hexdigest()[:16]


def _of_rules(specs: Sequence[RuleSpec]) -> str:
    try:
        own = version("stepwatch")
    except PackageNotFoundError:
        own = ""
    told: list[Any] = [own]
    for spec in specs:
        module = spec.rule.__module__
        code = "" if module.startswith("stepwatch.") else _code(spec.rule)
        said = {name: str(value) for name, value in vars(spec).items() if name != "rule"}
        told.append([module, spec.rule.__qualname__, said, code])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _code(rule: type) -> str:
    """The text of the file that a rule of the user's own comes from."""
    import inspect

    try:
        return Path(inspect.getfile(rule)).read_text("utf-8")
    except (OSError, TypeError):
        return ""


def _to_json(judged: Judged) -> dict[str, Any]:
    assert judged.analysis is not None
    analysis = judged.analysis
    return {
        **{name: value for name, value in vars(judged).items() if name not in ("run", "analysis", "error")},
        "rules": [result.to_json() for result in analysis.results],
        "findings": [finding.to_json() for finding in analysis.findings],
        "notes": analysis.notes,
        "warnings": analysis.warnings,
        "counters": analysis.counters,
    }


def _judged(run: Place, content: dict[str, Any]) -> Judged:
    said = dict(content)
    analysis = Analysis(
        [_result(entry) for entry in said.pop("rules")],
        [_finding(entry) for entry in said.pop("findings")],
        live=False,
        notes=said.pop("notes"),
        warnings=said.pop("warnings"),
        counters=said.pop("counters"),
    )
    return Judged(run, analysis, **{**said, "tags": tuple(said["tags"])})


def _finding(entry: dict[str, Any]) -> Finding:
    numbers = {name: float(entry[name]) for name in ("value", "threshold")}
    return Finding(**{**entry, **numbers, "severity": Severity(entry["severity"]), "tensors": tuple(entry["tensors"])})


def _result(entry: dict[str, Any]) -> RuleResult:
    coverage = dict(entry["coverage"])
    if coverage["margin"] is not None:
        coverage["margin"] = float(coverage["margin"])
    findings = [_finding(finding) for finding in entry["findings"]]
    return RuleResult(entry["rule"], Status(entry["status"]), findings, Coverage(**coverage), entry.get("detail", ""))
