"""A rule of one's own: the share of exact zeros in a weight, which pruning should reach and not pass."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from stepwatch.probe import Hook, SaveConfig
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.catalogue import configure
from stepwatch.rules.finding import Coverage, Finding
from stepwatch.rules.replay import analyze
from stepwatch.rules.rule import Rule
from stepwatch.rules.step import Step


class TooSparse(Rule):
    """A weight has more zeros than pruning was asked for."""

    def __init__(self, *, share: float = 0.5) -> None:
        self.share = share
        self.steps = 0

    def observe(self, step: Step) -> Iterator[Finding]:
        if step.stats is None:
            return
        self.steps += 1
        rows = step.stats.tensors.rows("weights")
        zeros = step.stats.n_zero[rows] / step.stats.numel[rows]
        for row, share in zip(rows, zeros, strict=True):
            if share > self.share:
                name = step.stats.tensors.names[row]
                yield self.finding(
                    step,
                    first_step=step.step,
                    tensors=[name],
                    value=share,
                    threshold=self.share,
                    message=f"{100 * share:.0f} % of {name} is zero",
                    suggestion="prune less",
                )

    def coverage(self) -> Coverage:
        return Coverage(decided=self.steps > 0, steps=self.steps)


if __name__ == "__main__":
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with Hook("runs/pruned", model=model, optimizer=optimizer, save_config=SaveConfig(save_interval=1)):
        for step in range(5):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                model.weight[: 2 * step] = 0

    found = analyze(Trace("runs/pruned"), configure([f"{Path(__file__)}:TooSparse"])).findings
    assert [finding.last_step for finding in found] == [4], found
    print(found[0].message)
