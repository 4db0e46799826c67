"""Has a job profile its next steps where a rule says that they take too long."""

from __future__ import annotations

from pathlib import Path

from stepwatch.probe.store.profile_requests import request_profile
from stepwatch.probe.store.profiles import profiles_of
from stepwatch.probe.store.reader import Trace
from stepwatch.rules.actions import ForRules, is_of_an_earlier_attempt
from stepwatch.rules.finding import Finding, Severity

STEPS = 3
MOST = 3
BY = "a rule"

SLOWNESS = (
    "DataLoadingBound",
    "StragglerRank",
    "CommunicationBound",
    "StepTimeDrift",
    "GpuStarved",
    "HostBound",
    "CPUBottleneck",
    "Dataloader",
    "IOBottleneck",
    "LowGPUUtilization",
    "StepOutlier",
)
"""Rules whose findings a look into some steps explains."""


class ProfileAction:
    """Asks the job to profile its next three steps, of the rank that was found; at most three times in a run."""

    name = "profile"
    at_least = Severity.INFO

    def apply(self, finding: Finding, run_dir: Path) -> str:
        """Ask for the profile."""
        trace = Trace(run_dir)
        if not trace.live():
            return "nothing to profile: the job had ended"
        if is_of_an_earlier_attempt(trace, finding):
            return "nothing to profile: the job was started again since"
        steps = {profile.step for profile in profiles_of(run_dir) if profile.by == BY}
        if len(steps) >= MOST:
            return f"not profiled: rules have had steps profiled {MOST} times in this run"
        request_profile(run_dir, STEPS, [finding.rank], f"{finding.rule}: {finding.message}", by=BY)
        return f"profile of {STEPS} steps requested of rank {finding.rank}"


def profile_when_slow() -> ForRules:
    """The action, on what the rules in :data:`SLOWNESS` find."""
    return ForRules(ProfileAction(), SLOWNESS)
