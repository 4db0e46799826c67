"""Gradient-boosted trees: how deep they are, what they rest on, and what a report of them needs."""

from __future__ import annotations

import math

import numpy as np

from stepwatch.rules.finding import Finding
from stepwatch.rules.sagemaker.base import SageMakerRule, above, at_least
from stepwatch.rules.sagemaker.selection import Selection, spelled
from stepwatch.rules.step import Step

_HOW = "; record with stepwatch.probe.integrations.xgboost"


class TreeDepth(SageMakerRule):
    """A tree is too deep.

    At each saved round: the depth is the binary logarithm, rounded down, of the largest node number in the trees
    of the collection ``trees``; it fires where that is above ``depth``. Nodes are numbered by level, two to each
    before, only where trees grow evenly; of others the number says less than the depth is.

    Args:
        depth: largest depth.
    """

    nothing = f"no trees were recorded{_HOW}"

    def __init__(self, *, depth: float = 4.0) -> None:
        super().__init__()
        at_least("depth", depth, 0)
        self.depth = depth
        self._trees = Selection(("trees", "tree"))

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        trees = self._trees.of(step)
        nodes = [row for row, name in enumerate(trees.names) if name.rpartition("/")[2] == "Node"]
        if not nodes:
            return None
        self.looked_at(step, len(nodes))
        worst = max(nodes, key=lambda row: trees.max[row])
        depth = math.floor(math.log2(trees.max[worst])) if trees.max[worst] >= 1 else 0
        if self.depth:
            self.came_near(depth / self.depth, trees.names[worst])
        if not depth > self.depth:
            return None
        return self.fire(
            step,
            [trees.names[worst]],
            [depth],
            threshold=self.depth,
            message=f"the largest node number of round {step.step} is {trees.max[worst]:.0f}: a depth of {depth}, "
            f"above {self.depth:g}",
            suggestion="lower max_depth, raise min_child_weight or gamma, or prune",
            unit="depth",
            column="max",
        )


class FeatureImportanceOverweight(SageMakerRule):
    """A few features carry nearly all of the model.

    At each saved round: the importances of the ``nfeatures`` most important features, in the sum of all; fires
    where their share is above ``threshold``. A model that uses no more features than ``nfeatures`` always fires.

    Args:
        threshold: share of the sum, from 0 to 1.
        nfeatures: features that are taken together.
        tensor_regex: names of the importances.
    """

    whole_tensors = True
    nothing = f"no feature importances were recorded{_HOW}"

    def __init__(
        self,
        *,
        threshold: float = 0.8,
        nfeatures: int = 3,
        tensor_regex: tuple[str, ...] = (".*feature_importance/weight",),
    ) -> None:
        super().__init__()
        above("threshold", threshold, 0)
        at_least("nfeatures", nfeatures, 1)
        self.threshold = threshold
        self.nfeatures = nfeatures
        self._importances = Selection(patterns=spelled(tensor_regex))

    def judge(self, step: Step) -> Finding | None:
        """See the base class."""
        found = [
            (float(number), name)
            for name, value in self._importances.values(step).items()
            for number in np.asarray(value, dtype=np.float64).reshape(-1)
        ]
        total = sum(number for number, _ in found)
        if not total > 0:
            return None
        if len(found) <= self.nfeatures:
            self.lacks(f"the model uses {len(found)} features; {self.nfeatures} of them always carry it all")
        else:
            self._lacking.clear()
        self.looked_at(step, len(found))
        largest = sorted(found, reverse=True)[: self.nfeatures]
        share = sum(number for number, _ in largest) / total
        self.came_near(share / self.threshold, largest[0][1])
        if not share > self.threshold:
            return None
        return self.fire(
            step,
            [name for _, name in largest],
            [share],
            threshold=self.threshold,
            message=f"{len(largest)} of {len(found)} features have {100 * share:.3g} % of the importance in round "
            f"{step.step}: {', '.join(name.rpartition('/')[2] for _, name in largest)}",
            suggestion="look whether one of them gives the answer away; else drop it, or sample columns",
            unit="share of the importance",
        )


class CreateXgboostReport(SageMakerRule):
    """Asks for a report of the training; it never finds anything.

    ``stepwatch analyze`` writes it to ``rule-output/CreateXgboostReport/xgboost_report.html`` in the run, as SageMaker
    does below a job's output: ``stepwatch report RUN``, in which such runs have a part of their own. The verdict says
    whether what that shows was recorded.
    """

    nothing = f"neither trees nor feature importances were recorded{_HOW}"

    def __init__(self) -> None:
        super().__init__()
        self._shown = Selection(
            ("trees", "labels", "predictions", "feature_importance"),
            ("feature_importance/", "^labels$", "^predictions$"),
        )
        self._wanted = {"labels": "labels", "predictions": "predictions", "feature_importance/": "feature importances"}
        self._seen: set[str] = set()

    def judge(self, step: Step) -> None:
        """See the base class."""
        names = self._shown.of(step).names
        if not any(name.startswith(("trees/", "feature_importance/")) for name in names):
            return
        self.looked_at(step, len(names))
        self._seen |= {begin for begin in self._wanted if any(name.startswith(begin) for name in names)}
        self._lacking = {
            f"no {what} were recorded": None for begin, what in self._wanted.items() if begin not in self._seen
        }
