"""Adapters to training frameworks: each module imports its own, and nothing else imports them."""
