"""A rule about what the loss function is given."""

from __future__ import annotations

from collections.abc import Iterator

from stepwatch.probe.store.schema import LOSS_INPUT_QUANTITY, LossInput
from stepwatch.rules.finding import Coverage, Finding, Severity
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step

_BOUNDED = "give it the logits: leave out the {0} before the loss, and use it for predictions only"


def _out_of_reach(activation: str, where: str) -> tuple[str, str]:
    return (
        f"the model ends in a {activation}, and {{0:.0%}} of the targets lie {where}: no training can reach them",
        f"leave out the {activation} after the last layer, or scale the targets into its range",
    )


_SAID: dict[LossInput, tuple[str, str]] = {
    LossInput.SOFTMAX_TO_CROSS_ENTROPY: (
        "the cross-entropy is given the output of a softmax and takes the softmax of it again: its logits lie between "
        "0 and 1, so that the loss cannot come near zero and gradients are small",
        _BOUNDED.format("softmax"),
    ),
    LossInput.SIGMOID_TO_CROSS_ENTROPY: (
        "the cross-entropy takes the softmax of the output of a sigmoid: its logits lie between 0 and 1, so that the "
        "loss cannot come near zero and gradients are small",
        _BOUNDED.format("sigmoid"),
    ),
    LossInput.RELU_TO_CROSS_ENTROPY: (
        "the logits of the cross-entropy go through a ReLU: a class whose logit is below zero for a sample has no "
        "gradient from it",
        "leave out the ReLU after the last layer",
    ),
    LossInput.SIGMOID_TO_LOGITS: (
        "the loss with logits is given the output of a sigmoid and takes the sigmoid of it again: every probability "
        "lies between 0.50 and 0.73",
        _BOUNDED.format("sigmoid") + "; or use BCELoss with it",
    ),
    LossInput.SOFTMAX_TO_LOGITS: (
        "the loss with logits takes the sigmoid of the output of a softmax: every probability lies between 0.50 "
        "and 0.73",
        _BOUNDED.format("softmax"),
    ),
    LossInput.RELU_TO_LOGITS: (
        "the logits of the loss go through a ReLU: no probability can be below one half",
        "leave out the ReLU after the last layer",
    ),
    LossInput.LOGITS_TO_LIKELIHOOD: (
        "the negative log-likelihood is given the numbers of a layer as they come, where it expects logarithms of "
        "probabilities: it falls below zero without bound",
        "use CrossEntropyLoss, or put a LogSoftmax before NLLLoss",
    ),
    LossInput.PROBABILITIES_TO_LIKELIHOOD: (
        "the negative log-likelihood is given probabilities, where it expects their logarithms: what is learned stops "
        "counting where it should count most",
        "use CrossEntropyLoss with the logits, or LogSoftmax in place of Softmax",
    ),
    LossInput.BROADCAST: (
        "predictions and targets of {0:.0f} samples differ in shape, one of them being a column: each prediction is "
        "held against the targets of all {0:.0f} samples, so that the best answer to everything is their mean",
        "give both the same shape: squeeze(1) of the predictions, or unsqueeze(1) of the targets",
    ),
    LossInput.RELU_OUT_OF_REACH: _out_of_reach("ReLU", "below zero, where it ends"),
    LossInput.SIGMOID_OUT_OF_REACH: _out_of_reach("sigmoid or softmax", "outside 0 to 1, its range"),
    LossInput.TANH_OUT_OF_REACH: _out_of_reach("tanh", "outside -1 to 1, its range"),
}
_SHARE = 0.1  # of the targets that must be out of reach


class WrongLossInput(Rule):
    """The loss function is given something else than it is meant for: it computes a number, and trains the wrong thing.

    The hook reads from the graph that autograd keeps of the loss, in the first saved steps, which operation computed
    what the loss function was given. It fires where that is a softmax, a sigmoid or a ReLU before a loss that wants
    logits, no logarithm before a negative log-likelihood, or where predictions of shape [N, 1] and targets of shape
    [N] (or the other way round) were broadcast to N x N pairs; and where a tenth of the targets of a distance lie out
    of the range of the activation that the model ends in. It is certain, not estimated: at the first step. A loss
    computed within a compiled function keeps no such graph.
    """

    severity = Severity.WARNING

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._said: set[LossInput] = set()

    def observe(self, step: Step) -> Iterator[Finding]:
        """See the base class."""
        for (name, quantity), vector in step.derived.items():
            if quantity != LOSS_INPUT_QUANTITY:
                continue
            self._steps.append(step.step)
            problem = LossInput(int(vector[0]))
            reached = problem >= LossInput.RELU_OUT_OF_REACH and vector[1] < _SHARE
            if problem is LossInput.SOUND or reached or problem in self._said:
                continue
            self._said.add(problem)
            message, suggestion = _SAID[problem]
            yield self.finding(
                step,
                first_step=step.step,
                tensors=[name],
                value=vector[1],
                threshold=_SHARE if problem >= LossInput.RELU_OUT_OF_REACH else 0.0,
                message=message.format(vector[1]),
                suggestion=suggestion,
                evidence={"series": [name], "quantity": LOSS_INPUT_QUANTITY},
                severity=Severity.INFO if problem is LossInput.RELU_TO_CROSS_ENTROPY else self.severity,
            )

    def coverage(self) -> Coverage:
        """See the base class."""
        missing = () if self._steps else ("no graph of a loss with a known loss function was seen",)
        return Coverage.of(self._steps, tensors=min(len(self._steps), 1), missing=missing)
