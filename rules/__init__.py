"""Rules that read traces and decide."""
