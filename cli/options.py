"""Options that several commands share."""

from __future__ import annotations

import click

RULES = click.option(
    "--rules", "rules", multiple=True, metavar="NAMES", help="Rules or sets, comma-separated; or a rule file."
)
SETTINGS = click.option("--set", "settings", multiple=True, metavar="RULE.PARAM=VALUE", help="Set a rule's parameter.")
