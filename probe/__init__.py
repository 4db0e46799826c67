"""The hook of a training job and the store of what it records."""
