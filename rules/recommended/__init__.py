"""The default rules, calibrated so that a healthy run is quiet."""

from __future__ import annotations

from stepwatch.rules.rule import Rule

RECOMMENDED: tuple[type[Rule], ...] = ()
