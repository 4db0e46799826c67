"""scikit-learn's handwritten digits: 1,797 real 8 x 8 images, bundled with the library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_digits


@dataclass(frozen=True)
class Digits:
    """Images and labels.

    Attributes:
        train_images, eval_images: float32 [n, 1, 8, 8], in [0, 1].
        train_labels, eval_labels: int64 [n], 0..9.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    eval_images: torch.Tensor
    eval_labels: torch.Tensor

    @classmethod
    def load(cls) -> Digits:
        """Four fifths for training, one for evaluation."""
        bunch = load_digits()
        images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(bunch.target, dtype=torch.int64)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        cut = len(labels) * 4 // 5
        train, held_out = order[:cut], order[cut:]
        return cls(images[train], labels[train], images[held_out], labels[held_out])

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch of shuffled training batches; the last, smaller one is left out."""
        order = torch.randperm(len(self.train_labels))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield self.train_images[chosen], self.train_labels[chosen]

    def scaled(self, factor: float) -> Digits:
        """Pixels in [0, factor]."""
        return replace(self, train_images=self.train_images * factor, eval_images=self.eval_images * factor)


def few_labels_wrong(digits: Digits) -> Digits:
    """120 training images, 24 of them with a label of another."""
    labels = digits.train_labels[:120].clone()
    labels[:24] = (labels[:24] + 3) % 10
    return replace(digits, train_images=digits.train_images[:120], train_labels=labels)


def shuffled_labels(digits: Digits) -> Digits:
    """Labels in another order than their images."""
    order = torch.randperm(len(digits.train_labels), generator=torch.Generator().manual_seed(1))
    return replace(digits, train_labels=digits.train_labels[order])


def mostly_one_class(digits: Digits) -> Digits:
    """All images of a zero, and a few of each other digit, shown so often that they are an epoch."""
    generator = torch.Generator().manual_seed(2)
    zeros = torch.nonzero(digits.train_labels == 0).flatten()
    others = [torch.nonzero(digits.train_labels == digit).flatten()[:2] for digit in range(1, 10)]
    repeated = zeros[torch.randint(len(zeros), (1400,), generator=generator)]
    chosen = torch.cat([repeated, *others])
    return replace(digits, train_images=digits.train_images[chosen], train_labels=digits.train_labels[chosen])
