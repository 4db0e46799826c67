"""Labels and inputs: how they are spread."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stepwatch.rules.finding import Finding
from stepwatch.rules.sagemaker.base import WHOLE, SageMakerRule, above, at_least, fraction, percent
from stepwatch.rules.sagemaker.selection import Selection, first_of
from stepwatch.rules.step import Step


class ClassImbalance(SageMakerRule):
    """One class has far more samples than another, or a class is mostly predicted wrong.

    Labels and predictions are counted over all saved steps; from ``samples`` labels on, at each step that brings
    more, it fires where the most frequent class has more than ``threshold_imbalance`` times the samples of the
    rarest one that was seen, or where of a class a share above ``threshold_misprediction`` was predicted wrong.
    A class that never was a label counts for nothing. Predictions that are not whole numbers are rounded. Of
    several matching tensors the first labels go with the first predictions, by name.

    Needs whole tensors, as ``hook.save_tensor("labels", y)`` records them with ``save_raw_tensor``. Where
    ``labels_regex`` finds the labels of a cross-entropy loss (``CrossEntropyLoss_input_1``), the counts that the
    hook takes of these serve as well, with the predictions behind them.

    Args:
        threshold_imbalance: ratio between the most frequent class and the rarest.
        threshold_misprediction: share predicted wrong, from 0 to 1.
        samples: labels from which on it judges.
        argmax: predictions are one number per class, in the last axis.
        labels_regex: name of the labels.
        predictions_regex: name of the predictions.
    """

    whole_tensors = True
    derived = ("class_counts",)

    def __init__(
        self,
        *,
        threshold_imbalance: float = 10.0,
        threshold_misprediction: float = 0.7,
        samples: int = 500,
        argmax: bool = False,
        labels_regex: str = ".*labels",
        predictions_regex: str = ".*predictions",
    ) -> None:
        super().__init__()
        above("threshold_imbalance", threshold_imbalance, 0)
        fraction("threshold_misprediction", threshold_misprediction)
        at_least("samples", samples, 1)
        self.threshold_imbalance = threshold_imbalance
        self.threshold_misprediction = threshold_misprediction
        self.samples = samples
        self.argmax = argmax
        self._labels = Selection(patterns=(labels_regex,))
        self._predictions = Selection(patterns=(predictions_regex,))
        self._counts: dict[int, int] = {}
        self._predicted: dict[int, int] = {}
        self._wrong: dict[int, int] = {}
        self.nothing = f"no labels that {self._labels} finds were recorded"

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        name = self._count_whole(step) or self._count_derived(step)
        if not name:
            return None
        total = sum(self._counts.values())
        if total < self.samples:
            self.lacks(f"fewer than {self.samples} labels were recorded")
            return None
        self._lacking.clear()
        self.looked_at(step, 1)
        return self._judge_imbalance(step, name) or self._judge_predictions(step, name)

    def _count_whole(self, step: Step) -> str:
        labels = first_of(self._labels.values(step))
        if labels is None:
            return ""
        name, value = labels
        classes = np.rint(value).astype(np.int64).reshape(-1)
        predictions = first_of(self._predictions.values(step))
        predicted = None
        if predictions is not None:
            found = predictions[1].argmax(axis=-1) if self.argmax else np.rint(predictions[1])
            predicted = found.astype(np.int64).reshape(-1)
            if len(predicted) != len(classes):
                self.lacks(f"{predictions[0]} has {len(predicted)} entries for {len(classes)} labels; argmax?")
                predicted = None
        for label, count in zip(*np.unique(classes, return_counts=True), strict=True):
            wrong = 0 if predicted is None else int((predicted[classes == label] != label).sum())
            self._add(int(label), int(count), 0 if predicted is None else int(count), wrong)
        return name

    def _count_derived(self, step: Step) -> str:
        for (name, quantity), vector in step.derived.items():
            if quantity == "class_counts" and self._labels.matches(name, ()):
                counts, right = vector.reshape(2, -1).astype(np.int64)
                for label in np.flatnonzero(counts):
                    self._add(int(label), int(counts[label]), int(counts[label]), int(counts[label] - right[label]))
                return name
        if len(self._labels.of(step)):
            self.lacks(f"{self._labels.of(step).names[0]} was recorded as statistics; it {WHOLE}")
        return ""

    def _add(self, label: int, count: int, predicted: int, wrong: int) -> None:
        self._counts[label] = self._counts.get(label, 0) + count
        self._predicted[label] = self._predicted.get(label, 0) + predicted
        self._wrong[label] = self._wrong.get(label, 0) + wrong

    def _judge_imbalance(self, step: Step, name: str) -> Finding | None:
        most = max(self._counts, key=lambda label: self._counts[label])
        least = min(self._counts, key=lambda label: self._counts[label])
        ratio = self._counts[most] / self._counts[least]
        self.came_near(ratio / self.threshold_imbalance, name)
        if not ratio > self.threshold_imbalance:
            return None
        return self.fire(
            step,
            [name],
            [ratio],
            threshold=self.threshold_imbalance,
            message=f"class {most} has {self._counts[most]} samples up to step {step.step}, {ratio:.3g} times as many "
            f"as class {least} with {self._counts[least]}",
            suggestion="sample rare classes more often, weight the loss by class, and judge by class",
            unit="ratio of samples",
        )

    def _judge_predictions(self, step: Step, name: str) -> Finding | None:
        shares = {label: self._wrong[label] / count for label, count in self._predicted.items() if count}
        if not shares:
            return None
        worst = max(shares, key=lambda label: shares[label])
        if self.threshold_misprediction:
            self.came_near(shares[worst] / self.threshold_misprediction, name)
        if not shares[worst] > self.threshold_misprediction:
            return None
        return self.fire(
            step,
            [name],
            [shares[worst]],
            threshold=self.threshold_misprediction,
            message=f"{100 * shares[worst]:.3g} % of the samples of class {worst} were predicted wrong up to step "
            f"{step.step}",
            suggestion="sample rare classes more often, weight the loss by class; look at the labels of that class",
            unit="share predicted wrong",
        )


class CheckInputImages(SageMakerRule):
    """Input images are not normalised: the mean of a channel is far from zero.

    The mean of each channel is taken over all images of all saved steps so far; from ``threshold_samples`` images
    on it fires where the magnitude of one is above ``threshold_mean``. That their variance should be 1 is written,
    and not checked. Needs whole tensors, but where images have a single channel: there statistics tell the mean.

    Args:
        threshold_mean: magnitude of the mean of a channel.
        threshold_samples: images from which on it judges.
        regex: name of the input. The default is that of SageMaker, a name of MXNet's; in PyTorch give e.g.
            ``^conv1_input_0``.
        channel: axis of the channels.
    """

    whole_tensors = True

    def __init__(
        self,
        *,
        threshold_mean: float = 0.2,
        threshold_samples: int = 500,
        regex: str = ".*hybridsequential0_input_0",
        channel: int = 1,
    ) -> None:
        super().__init__()
        above("threshold_mean", threshold_mean, 0)
        at_least("threshold_samples", threshold_samples, 1)
        at_least("channel", channel, 1)
        self.threshold_mean = threshold_mean
        self.threshold_samples = threshold_samples
        self.channel = channel
        self._images = Selection(patterns=(regex,))
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._seen: dict[str, int] = {}
        self.nothing = f"no tensor that {self._images} finds was recorded"

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        found = None
        for name in [name for name in self._images.of(step).names if not name.startswith("gradient")]:
            means = self._means(step, name)
            if means is None:
                continue
            samples, sums = means
            if name in self._sums and self._sums[name].shape == sums.shape:
                sums, samples = sums + self._sums[name], samples + self._seen[name]
            self._sums[name], self._seen[name] = sums, samples
            if samples < self.threshold_samples:
                self.lacks(f"fewer than {self.threshold_samples} images were recorded")
            else:
                found = found or self._judge_channels(step, name, sums / samples, samples)
        return found

    def _judge_channels(self, step: Step, name: str, means: NDArray[np.float64], samples: int) -> Finding | None:
        self._lacking.clear()
        self.looked_at(step, 1)
        worst = int(np.abs(means).argmax())
        self.came_near(abs(means[worst]) / self.threshold_mean, name)
        if not abs(means[worst]) > self.threshold_mean:
            return None
        return self.fire(
            step,
            [name],
            [means[worst]],
            threshold=self.threshold_mean,
            message=f"channel {worst} of {name} has mean {means[worst]:.3g} over {samples} images, up to step "
            f"{step.step}",
            suggestion="normalise each channel to mean 0 and variance 1, and check the order of the channels",
            unit="mean",
        )

    def _means(self, step: Step, name: str) -> tuple[int, NDArray[np.float64]] | None:
        """Images in it, and the sum over them of the mean of each channel."""
        value = step.values.get(name)
        if value is not None:
            if value.ndim <= self.channel or not value.size:
                return None
            others = tuple(axis for axis in range(1, value.ndim) if axis != self.channel)
            return len(value), value.mean(axis=others, dtype=np.float64).sum(axis=0)
        assert step.stats is not None
        row = step.stats.tensors.names.index(name)
        shape = step.stats.tensors.infos[row].shape
        if len(shape) <= self.channel or shape[self.channel] != 1:
            self.lacks(f"{name} was recorded as statistics; it {WHOLE}")
            return None
        samples = int(step.stats.numel[row] // math.prod(shape[1:]))
        return samples, np.array([step.stats.mean[row] * samples])


class NLPSequenceRatio(SageMakerRule):
    """A token, such as that for padding, makes up too much of the input.

    At each saved step on its own: fires where more than the given percentage of the entries of a tensor are
    equal to a token. Whether steps should be added up is not said. The share of token 0 is told by statistics;
    others need whole tensors.

    Args:
        tensor_regex: names of the inputs. The default is that of SageMaker, a name of MXNet's; in PyTorch give
            e.g. ``embedding_input_0``.
        token_values: the tokens.
        token_thresholds_percent: percentage for each of them.
    """

    whole_tensors = True

    def __init__(
        self,
        *,
        tensor_regex: tuple[str, ...] = (".*embedding0_input_0",),
        token_values: tuple[str, ...] = ("0",),
        token_thresholds_percent: tuple[str, ...] = ("50",),
    ) -> None:
        super().__init__()
        self._inputs = Selection(patterns=tensor_regex)
        self.tokens = _numbers("token_values", token_values)
        self.thresholds = _numbers("token_thresholds_percent", token_thresholds_percent)
        if len(self.tokens) != len(self.thresholds):
            raise ValueError(
                f"token_thresholds_percent has {len(self.thresholds)} entries; expected one for each of "
                f"{len(self.tokens)} token_values"
            )
        for threshold in self.thresholds:
            percent("token_thresholds_percent", threshold)
        self.nothing = f"no tensor that {self._inputs} finds was recorded"

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        found = None
        inputs, values = self._inputs.of(step), self._inputs.values(step)
        for row, name in enumerate(inputs.names):
            for token, threshold in zip(self.tokens, self.thresholds, strict=True):
                if name in values and values[name].size:
                    share = float(100 * (values[name] == token).mean())
                elif token == 0 and inputs.numel[row]:
                    share = float(100 * inputs.n_zero[row] / inputs.numel[row])
                else:
                    self.lacks(f"{name} was recorded as statistics; a token other than 0 {WHOLE}")
                    continue
                self.looked_at(step, len(inputs))
                self.came_near(share / threshold if threshold else math.inf, name)
                if share > threshold and found is None:
                    found = self._say(step, name, token, share, threshold)
        return found

    def _say(self, step: Step, name: str, token: float, share: float, threshold: float) -> Finding:
        return self.fire(
            step,
            [name],
            [share],
            threshold=threshold,
            message=f"token {token:g} makes up {share:.3g} % of {name} at step {step.step}, above {threshold:g} %",
            suggestion="batch sequences of similar length where it is padding; enlarge the vocabulary where it stands "
            "for unknown words",
            unit="% of entries",
        )


def _numbers(name: str, values: tuple[str, ...] | str) -> list[float]:
    texts = values.split(",") if isinstance(values, str) else values
    try:
        return [float(text) for text in texts]
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {', '.join(map(str, texts))}; expected numbers") from None
