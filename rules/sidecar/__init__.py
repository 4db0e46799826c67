"""The sidecar: follows many live runs, judges them and acts; state on disk, so that it may be killed at any moment."""
