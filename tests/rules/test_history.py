import pickle

import numpy as np
import pytest

from stepwatch.rules import series
from stepwatch.rules.catalogue import configure
from stepwatch.rules.engine import Engine
from stepwatch.rules.history import History, SeenSteps
from stepwatch.rules.recommended import growth, schedule
from stepwatch.rules.recommended.loss import LossNotDecreasing
from stepwatch.rules.step import Step
from stepwatch.rules.testing import SyntheticRun


def history_of(count: int, keep: int = 256) -> History[int]:
    history: History[int] = History("q", keep)
    for number in range(count):
        history.append(10 * number)
    return history


@pytest.mark.parametrize("count", [0, 1, 511])
def test_a_short_history_is_all_of_the_series(count: int):
    series = [10 * number for number in range(count)]
    history = history_of(count)
    assert list(history) == series and len(history) == count
    assert list(history[-7:]) == series[-7:] and list(history[3:9:2]) == series[3:9:2]


def test_a_long_history_has_the_length_of_the_series_and_its_beginning_and_end():
    history = history_of(100_000)
    whole = np.array(history)
    assert len(history) == len(whole) == 100_000
    assert np.array_equal(whole[:256], 10 * np.arange(256))
    assert np.array_equal(whole[-256:], 10 * np.arange(99_744, 100_000))
    assert history[0] == 0 and history[-1] == 999_990 and history[255] == 2550


def test_what_is_between_is_near_what_was_there():
    history = history_of(100_000)
    away = np.abs(np.array(history) - 10 * np.arange(100_000))
    assert away.max() < 10 * 100_000 / 128  # at least half of 256 places for what is between
    assert [history[at] for at in range(0, 100_000, 777)] == np.array(history)[::777].tolist()
    assert np.all(np.diff(np.array(history)[512:]) >= 0)


def test_neighbours_that_stay_together_keep_the_noise_of_the_series():
    random = np.random.default_rng(0)
    history: History[float] = History("d", 1024, together=64)
    for _ in range(50_000):
        history.append(random.normal())
    assert history.stride > 1
    assert series.noise_of(np.array(history)) == pytest.approx(1.0, rel=0.1)
    assert [history[at] for at in range(0, 50_000, 777)] == np.array(history)[::777].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_a_flat_and_noisy_loss_is_no_rise_however_long_it_is(seed: int, monkeypatch: pytest.MonkeyPatch):
    """What stands for many steps must not look surer than it is."""
    monkeypatch.setattr(series, "_KEPT", 256)
    random = np.random.default_rng(seed)
    rule = LossNotDecreasing()
    losses = np.where(np.arange(6_000) < 600, 2.01, 2.0) + random.normal(0, 0.3, 6_000)
    steps = (Step(0, at, "TRAIN", at, 0, scalars={"loss": float(value)}) for at, value in enumerate(losses))
    assert [finding for step in steps for finding in rule.observe(step)] == []


def test_a_history_of_any_length_takes_the_same_room():
    sizes = [len(pickle.dumps(history_of(count))) for count in (2_000, 200_000)]
    assert sizes[1] < 1.5 * sizes[0]


def test_the_head_of_a_history_goes_on_in_another_way():
    history = history_of(400)
    head = history.head(300)
    head.append(-1)
    assert list(head) == [*range(0, 3_000, 10), -1] and len(history) == 400


def test_a_history_that_keeps_too_little_is_refused():
    with pytest.raises(ValueError, match="keep is 300; expected a power of two, at least 256"):
        History("d", 300)


def test_of_the_steps_that_were_seen_the_first_the_latest_and_their_number_are_known():
    steps = SeenSteps(keep=3)
    assert not steps
    for step in range(5, 1000, 5):
        steps.append(step)
    assert (len(steps), steps[0], steps[-1], steps[-3]) == (199, 5, 995, 985)
    with pytest.raises(IndexError, match="step -4 of 199"):
        steps[-4]


def test_what_rules_know_of_a_long_run_does_not_grow_with_it(monkeypatch: pytest.MonkeyPatch):
    """All that rules look at, at every step, so that each of them has what it keeps a history of."""
    for module in (series, schedule, growth):
        monkeypatch.setattr(module, "_KEPT", 256)
    monkeypatch.setattr(series, "_KEPT_STEPS", 256)
    random = np.random.default_rng(0)
    labels = [*random.multinomial(64, [0.2] * 5), *random.multinomial(60, [0.2] * 5)]
    run = (
        SyntheticRun(steps=1_500)
        .loss(lambda step: 0.3 + 2 / (1 + step / 100) + 0.05 * np.sin(1.7 * step))
        .learning_rate(lambda step: 0.1 / (1 + step / 1000))
        .scalar("grad_clip/norm", 0.5)
        .scalar("grad_clip/max_norm", 1.0)
        .evaluations(5, lambda number: 0.4 + 2 / (1 + number / 100))
        .weights({"fc.weight": lambda step: 0.1 + step**0.5 / 1e4}, shape=(4, 4))
        .gradients({"fc.weight": 1e-3}, shape=(4, 4))
        .derived("CrossEntropyLoss_input_1", "class_counts", lambda step: labels)
        .derived("x", "batch", lambda step: [step, step % 20, 20])
        .derived("fc.weight", "update", lambda step: [0.001, 1.0, 1024, 0])
        .derived("fc.weight", "agreement", lambda step: [0.5])
        .derived("relu_output_0", "unit_activity", lambda step: [16, 1, 0, 0])
    )
    engine = Engine([spec for spec in configure(["recommended"]) if not spec.rule.compares_ranks])
    sizes = []
    for number, step in enumerate(run.steps()):
        engine.feed(step)
        if number in (1_100, 1_799):
            sizes.append(len(pickle.dumps(engine.state())))
    assert sizes[1] < 1.25 * sizes[0]
