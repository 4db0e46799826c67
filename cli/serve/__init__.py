"""Runs below a directory as pages over HTTP, while they grow."""
