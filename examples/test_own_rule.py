"""Tests of the rule in own_rule.py on made-up runs: no training, some milliseconds. Run with pytest or as it is."""

from own_rule import TooSparse

from stepwatch.rules.testing import SyntheticRun

PRUNED = SyntheticRun(steps=4).weights({"fc.weight": lambda step: [[0.0] * step + [1.0] * (4 - step)] * 4})


def test_it_fires_when_more_is_zero_than_was_asked_for() -> None:
    judgement = PRUNED.judge(TooSparse(share=0.5))
    assert judgement.steps == [3]
    assert judgement.findings[0].tensors == ("fc.weight",)
    assert judgement.findings[0].value == 0.75


def test_a_run_whose_weights_were_not_recorded_is_not_called_healthy() -> None:
    assert not SyntheticRun(steps=4).loss(1.0).judge(TooSparse()).coverage.decided


if __name__ == "__main__":
    test_it_fires_when_more_is_zero_than_was_asked_for()
    test_a_run_whose_weights_were_not_recorded_is_not_called_healthy()
    print("the rule does what it should")
