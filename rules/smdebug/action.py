"""smdebug's actions, as a script that invokes a rule itself has them carried out.

Under ``stepwatch analyze`` and ``stepwatch watch`` they are not: there it is the configuration that says what is done.
"""

from __future__ import annotations

import logging
from typing import Any

from stepwatch.rules.errors import RuleError
from stepwatch.rules.service.actions import parse_actions

log = logging.getLogger("stepwatch")

ALLOWED_ACTIONS = ["stoptraining", "sms", "email"]


class StopTrainingAction:
    """Stops the running SageMaker training job whose name begins so, if there is just one."""

    def __init__(self, rule_name: str, training_job_prefix: str) -> None:
        self._prefix = training_job_prefix

    def invoke(self, message: str = "") -> None:
        """Stop it.

        Raises:
            SchedulerError: no job, or more than one, has such a name; none is stopped.
            ImportError: boto3 is not installed.
        """
        from stepwatch.rules.sidecar.schedulers import stop_training_job

        log.warning("%s", stop_training_job(self._prefix))


class MessageAction:
    """Tells by e-mail or SMS, through the topic ``SMDebugRules`` of Amazon SNS.

    Args:
        rule_name: the rule.
        message_type: ``email`` or ``sms``.
        message_endpoint: the address, or the number with its country code.

    Raises:
        ValueError: an endpoint that is not one.
        ImportError: boto3 is not installed.
    """

    def __init__(self, rule_name: str, message_type: str, message_endpoint: str) -> None:
        from stepwatch.rules.telling.aws import SnsChannel

        self._rule_name = rule_name
        self._channel = SnsChannel(message_type, message_endpoint)

    def invoke(self, message: str = "") -> None:
        """Send it.

        Raises:
            SendError: SNS did not take it.
        """
        self._channel.publish(f"SMDebugRule:{self._rule_name} fired", message)


class Actions:
    """What an action string asks for; no failure of an action reaches the rule, the log has it.

    Args:
        actions_str: see :mod:`stepwatch.rules.service.actions`.
        rule_name: the rule.
    """

    def __init__(self, actions_str: str = "", rule_name: str = "") -> None:
        self._actions: list[Any] = []
        try:
            wanted = parse_actions(actions_str.strip(), rule_name)
        except RuleError as error:
            log.warning("%s", error)
            return
        if wanted.stop and wanted.job_prefix:
            self._actions.append(StopTrainingAction(rule_name, wanted.job_prefix))
        elif wanted.stop:
            log.warning("%s: the action stoptraining has no training_job_prefix and is left out", rule_name)
        for kind, endpoint in wanted.tell:
            try:
                self._actions.append(MessageAction(rule_name, kind, endpoint))
            except (ValueError, ImportError) as error:
                log.warning("%s: the action %s is left out: %s", rule_name, kind, error)

    def invoke(self, message: str = "") -> None:
        """Carry all of it out."""
        for action in self._actions:
            try:
                action.invoke(message)
            except Exception as error:
                log.warning("%s failed: %s", type(action).__name__, error)
