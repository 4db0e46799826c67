"""Trials of a tuning job, watched as one: which of them are not worth going on with."""
