"""Compares runs: how they were made, where they part, which is better."""
