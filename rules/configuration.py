"""Rule files: which rules, with which parameters, in SageMaker's JSON or in a shorter form of our own.

SageMaker's form is that of a CreateTrainingJob request, or the list of ``DebugRuleConfigurations`` in it; ours
is a list ``rules`` of names and of tables::

    rules:
      - recommended
      - rule: sagemaker.VanishingGradient
        name: VanishingTail                  # under which it is reported; that of the rule by default
        parameters: {threshold: 1e-6}
        start_step: 100
        end_step: 2000
        severity: warning                    # of all that it finds
        tensors: [decoder, lm_head]          # it is shown no others
        stop: true                           # what it finds stops the job, live

JSON, YAML and TOML files may hold either.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepwatch.rules.catalogue import COMMON, RULE_FILES, RULE_SETS, RuleSpec, parameters_of, resolve
from stepwatch.rules.errors import RuleError
from stepwatch.rules.sagemaker_profiler.report import ProfilerReport, report_parameters
from stepwatch.rules.service.actions import parse_actions
from stepwatch.rules.service.request import describe_training_job, rule_file

_LISTS = ("DebugRuleConfigurations", "DebugRulesConfigurations")  # the second as SageMaker's guide has it in places
_PROFILER_LIST = "ProfilerRuleConfigurations"
_OWN_KEYS = ("rule", "name", "parameters", *COMMON, "stop")
_SAGEMAKER_KEYS = (
    *("RuleConfigurationName", "RuleEvaluatorImage", "RuleParameters", "LocalPath", "S3OutputPath"),
    *("InstanceType", "VolumeSizeInGB"),
)


def read_rules(path: Path) -> list[RuleSpec]:
    """The rules of a file.

    Raises:
        RuleError: it cannot be read, or names a rule, parameter or value that cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RuleError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(f"{path}: cannot be read: {error}") from None
    try:
        return rule_specs(_parse(path, text), folder=path.parent)
    except RuleError as error:
        raise RuleError(f"{path}: {error}") from None


def rules_of_job(name: str) -> list[RuleSpec]:
    """The rules of a SageMaker training job, debugging and profiler rules, as DescribeTrainingJob has them.

    Raises:
        RuleError: there is no such job, it has no rules, or one that cannot be used.
    """
    content = describe_training_job(name)
    try:
        return rule_specs(content)
    except RuleError as error:
        raise RuleError(f"training job {name}: {error}") from None


def rule_specs(content: Mapping[str, Any] | Sequence[Any], *, folder: Path = Path()) -> list[RuleSpec]:
    """The rules of a configuration: what a rule file holds, as Python has it.

    Args:
        content: a list of entries, or a mapping with ``rules``, or with SageMaker's lists of rule configurations.
        folder: that of the file; paths of rules are relative to it.

    Raises:
        RuleError: it names a rule, parameter or value that cannot be used.
    """
    entries, collections = _entries(content)
    specs: list[RuleSpec] = []
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, str):
            specs += _resolve(entry, folder)
        elif not isinstance(entry, Mapping):
            raise RuleError(f"rule {number} is {entry!r}; expected a name or a table")
        elif "RuleConfigurationName" in entry or "RuleParameters" in entry:
            specs.append(_from_sagemaker(number, entry, collections, folder))
        else:
            specs.append(_from_table(number, entry, folder))
    if not specs:
        raise RuleError("it names no rule")
    names = [spec.qualified_name for spec in specs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RuleError(f"two rules are called {twice!r}; give one of them a name of its own")
    for spec in specs:
        spec.build()
    return specs


def _parse(path: Path, text: str) -> Any:
    kind = path.suffix.lower()
    try:
        if kind == ".json":
            return json.loads(text)
        if kind == ".toml":
            toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
            return toml.loads(text)
        if kind in RULE_FILES:
            import yaml

            return yaml.safe_load(text)
    except Exception as error:
        raise RuleError(f"is not {kind[1:].upper()}: {' '.join(str(error).split())}") from None
    raise RuleError(f"is a {kind} file; expected {', '.join(RULE_FILES)}")


def _entries(content: Any) -> tuple[list[Any], dict[str, tuple[str, ...]]]:
    """The rules of a configuration, and the expressions of the collections that it defines."""
    if isinstance(content, Mapping):
        keys = [key for key in ("rules", *_LISTS) if key in content][:1]
        keys += [_PROFILER_LIST] if _PROFILER_LIST in content else []
        if not keys:
            raise RuleError(f"it has neither rules nor {_LISTS[0]}")
        hook = content.get("DebugHookConfig") or content
        entries = [entry for key in keys for entry in _list(key, content[key])]
        return entries, dict(_collections(hook.get("CollectionConfigurations") or ()))
    return _list("the configuration", content), {}


def _list(what: str, value: Any) -> list[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    raise RuleError(f"{what} is {value!r}; expected a list of rules")


def _collections(configurations: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, tuple[str, ...]]]:
    for each in configurations:
        pattern = (each.get("CollectionParameters") or {}).get("include_regex")
        if pattern and "CollectionName" in each:
            yield each["CollectionName"], (pattern,) if isinstance(pattern, str) else tuple(pattern)


def _from_table(number: int, entry: Mapping[str, Any], folder: Path) -> RuleSpec:
    unknown = next((key for key in entry if key not in _OWN_KEYS), None)
    if unknown is not None:
        raise RuleError(f"rule {number} has {unknown!r}; expected {', '.join(_OWN_KEYS)}")
    if not isinstance(entry.get("rule"), str):
        raise RuleError(f"rule {number} has no 'rule'; expected its name")
    spec = _single(entry["rule"], folder)
    parameters = {**_mapping("parameters", entry.get("parameters")), **_common(entry)}
    stop = entry.get("stop", False)
    if not isinstance(stop, bool):
        raise RuleError(f"rule {number}: stop is {stop!r}; expected true or false")
    return _with_parameters(replace(spec, label=str(entry.get("name", "")), stop=stop), parameters)


def _common(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in COMMON if entry.get(key) is not None}


def _from_sagemaker(
    number: int, entry: Mapping[str, Any], collections: Mapping[str, tuple[str, ...]], folder: Path
) -> RuleSpec:
    label = str(entry.get("RuleConfigurationName") or f"rule {number}")
    unknown = next((key for key in entry if key not in _SAGEMAKER_KEYS), None)
    if unknown is not None:
        raise RuleError(f"{label} has {unknown!r}; expected {', '.join(_SAGEMAKER_KEYS)}")
    parameters = _mapping("RuleParameters", entry.get("RuleParameters"))
    rule = parameters.pop("rule_to_invoke", None)
    if not isinstance(rule, str):
        raise RuleError(f"{label}: RuleParameters have no rule_to_invoke")
    source = parameters.pop("source_s3_uri", None) or parameters.pop("source", None)
    wanted = parse_actions(parameters.pop("action_json", None), label)
    spec = _single(f"{source}:{rule}", folder) if source else _built_in(label, rule)
    named = "" if label == spec.name else label
    spec = replace(spec, label=named, stop=wanted.stop, job_prefix=wanted.job_prefix, tell=wanted.tell)
    if spec.rule is ProfilerReport:
        parameters = report_parameters(parameters)
    return _with_parameters(spec, _limits(_other_trials(_as_expressions(spec, parameters, collections))))


def _built_in(label: str, rule: str) -> RuleSpec:
    for each in (*RULE_SETS["sagemaker"], *RULE_SETS["sagemaker-profiler"]):
        if each.__name__.lower() == rule.strip().lower():
            return RuleSpec(each)
    known = ", ".join(each.__name__ for key in ("sagemaker", "sagemaker-profiler") for each in RULE_SETS[key])
    raise RuleError(f"{label}: rule_to_invoke is {rule!r}; expected one of {known}")


def _as_expressions(
    spec: RuleSpec, parameters: Mapping[str, Any], collections: Mapping[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The same with the expressions of the configuration's own collections added to ``tensor_regex``, so that a
    run is judged alike whether or not its hook had them."""
    kept = dict(parameters)
    known = {parameter.name for parameter in parameters_of(spec.rule)}
    named = kept.get("collection_names")
    if not named or not {"collection_names", "tensor_regex"} <= known:
        return kept
    names = [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named)
    added = [pattern for name in names for pattern in collections.get(name, ())]
    if added:
        given = kept.get("tensor_regex") or ()
        kept["tensor_regex"] = (*([given] if isinstance(given, str) else given), *added)
    return kept


def _other_trials(parameters: dict[str, Any]) -> dict[str, Any]:
    """The same with ``other_trial`` and ``other_trial_0``, ``other_trial_1``, ... gathered."""
    others = [key for key in parameters if key == "other_trial" or key.startswith("other_trial_")]
    if not others:
        return parameters
    gathered = tuple(parameters[key] for key in sorted(others))
    return {**{key: value for key, value in parameters.items() if key not in others}, "other_trials": gathered}


def _limits(parameters: dict[str, Any]) -> dict[str, Any]:
    """The same with the pairs of early versions, ``threshold_tanh="(-9.4999, 9.4999)"``, as a minimum and a maximum."""
    found: dict[str, Any] = {}
    for name, value in parameters.items():
        pair = str(value).strip("() ").split(",")
        if name in ("threshold_tanh", "threshold_sigmoid") and len(pair) == 2:
            found |= {f"{name}_min": pair[0].strip(), f"{name}_max": pair[1].strip()}
        else:
            found[name] = value
    return found


def _with_parameters(spec: RuleSpec, parameters: Mapping[str, Any]) -> RuleSpec:
    for name, value in parameters.items():
        spec = spec.with_parameter(str(name), tuple(value) if isinstance(value, list) else value)
    return spec


def _mapping(what: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    raise RuleError(f"{what} is {value!r}; expected a table")


def _single(name: str, folder: Path) -> RuleSpec:
    specs = _resolve(name, folder)
    if len(specs) != 1 or name in RULE_SETS:
        raise RuleError(f"{name!r} is a set of rules; expected one rule")
    return specs[0]


def _resolve(name: str, folder: Path) -> list[RuleSpec]:
    place, colon, class_name = name.rpartition(":")
    if colon and place.endswith(".py") and "://" not in place:
        name = f"{folder / place}:{class_name}"
    if not colon and Path(name).suffix.lower() in RULE_FILES:
        raise RuleError(f"{name!r} is a rule file; expected a rule or a set of rules")
    if place.startswith("s3://"):
        name = f"{rule_file(place)}:{class_name}"
    return resolve(name)
