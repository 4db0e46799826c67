"""Which files of an index were read."""

from __future__ import annotations


class ReadIndexFilesCache:
    """Names of files that were read; above a limit those before the first that may be asked for again are dropped.

    Attributes:
        lookup_set: the names.
        cache_limit: from how many on names are dropped.
    """

    def __init__(self) -> None:
        self.lookup_set: set[str] = set()
        self.cache_limit = 1000

    def has_not_read(self, index_file: str) -> bool:
        """Whether a file is still to be read."""
        return index_file not in self.lookup_set

    def add(self, index_file: str, start_after_key: str | None) -> None:
        """A file was read; none before ``start_after_key`` will be asked for again."""
        if len(self.lookup_set) > self.cache_limit:
            self.lookup_set = {name for name in self.lookup_set if name >= (start_after_key or "")}
        self.lookup_set.add(index_file)
