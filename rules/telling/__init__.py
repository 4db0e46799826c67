"""Telling people and machines of findings: messages, channels, and an outbox that survives a restart."""
