"""The manager of collections that ``smdebug.core`` has: it begins without any."""

from __future__ import annotations

from collections.abc import Mapping

from stepwatch.probe.smdebug import collection
from stepwatch.probe.smdebug.collection import Collection


class CollectionManager(collection.CollectionManager):
    """Collections by name."""

    def __init__(self, collections: Mapping[str, Collection] | None = None, create_default: bool = False) -> None:
        super().__init__(collections, create_default)
