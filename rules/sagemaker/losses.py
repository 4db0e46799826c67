"""Losses as a smdebug trace would hold them: of which step and which mode."""

from __future__ import annotations

from stepwatch.rules.step import Step, is_captured_loss


class Losses:
    """Losses of saved steps by name; those that the hook captured, or where there are none the logged ones.

    We record losses at every step, smdebug at saved ones only, and rules that count saved steps must count the
    same. Evaluations of a run without a schedule of its own are not saved; of such a run all evaluation losses
    count.
    """

    def __init__(self) -> None:
        self._captured = {"training": False, "evaluation": False}
        self._saves_evaluations = False

    def training(self, step: Step) -> dict[str, float]:
        """Training losses of the step."""
        return self._kept("training", step.train_losses(), step.saved)

    def evaluation(self, step: Step) -> dict[str, float]:
        """Evaluation losses of the step."""
        if step.mode == "EVAL" and step.saved:
            self._saves_evaluations = True
        return self._kept("evaluation", step.eval_losses(), step.saved or not self._saves_evaluations)

    def _kept(self, kind: str, losses: dict[str, float], saved: bool) -> dict[str, float]:
        captured = {name: value for name, value in losses.items() if is_captured_loss(name)}
        self._captured[kind] = self._captured[kind] or bool(captured)
        if self._captured[kind]:
            return captured if saved else {}
        return losses
