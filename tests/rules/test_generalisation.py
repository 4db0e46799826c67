"""Overfitting and rare classes: what the noise between evaluations hides, and what is only slow."""

from __future__ import annotations

import numpy as np
import pytest

from stepwatch.rules.recommended import ClassImbalance, Overfit
from stepwatch.rules.testing import SyntheticRun

FALLS = [1.5, 1.2, 1.0, 0.9, 0.85]


def evaluated(values: list[float]) -> SyntheticRun:
    steps = 20 * len(values)
    return SyntheticRun(steps=steps).loss(lambda step: 2 * 0.99**step).evaluations(20, values)


def test_the_evaluation_at_the_end_of_a_run_counts() -> None:
    rises = [0.92, 1.0, 1.08, 1.16, 1.24]
    assert not evaluated([*FALLS, *rises[:-1]]).judge(Overfit()).findings
    (finding,) = evaluated([*FALLS, *rises]).judge(Overfit()).findings
    assert finding.first_step == 100 and "0.85" in finding.message


@pytest.mark.parametrize("seed", range(20))
def test_noise_between_evaluations_is_no_rise(seed: int) -> None:
    noise = 0.1 * np.random.default_rng(seed).standard_normal(40)
    assert not evaluated([float(value) for value in 0.85 + noise]).judge(Overfit()).findings


def labels(recall_at: dict[int, float]) -> SyntheticRun:
    """90 frequent labels and 10 rare ones a batch; of the rare a share is right from a step on."""

    def counts(step: int) -> np.ndarray:
        recall = [share for since, share in recall_at.items() if step >= since][-1]
        return np.array([90.0, 9.0, 90.0, round(9 * recall)])

    return SyntheticRun(steps=600, save_every=5).derived("CrossEntropyLoss_input_1", "class_counts", counts)


def test_rare_classes_that_are_given_up() -> None:
    (finding,) = labels({0: 0.0}).judge(ClassImbalance()).findings
    assert finding.value == 0 and finding.last_step - finding.first_step >= 200


def test_rare_classes_that_are_being_learnt_late() -> None:
    assert not labels({0: 0.0, 200: 0.12, 300: 0.5, 400: 0.9}).judge(ClassImbalance()).findings
