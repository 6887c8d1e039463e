"""The duties that keep storage in order, as a coordinator or `duckmesh maintain` has them."""

import threading
from dataclasses import dataclass
from datetime import timedelta

from catalog.connection import Catalog
from coordinator.compact import CompactionOptions, Compactor
from coordinator.duties import Duty
from coordinator.pace import step_back
from object_store.port import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceOptions:
    """What is done, and how often."""

    compaction: CompactionOptions
    compaction_every: timedelta = timedelta(seconds=10)


class Maintenance:
    """The rooms that maintenance works in."""

    def __init__(
        self, catalog: Catalog, store: ObjectStore, *, options: MaintenanceOptions
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._options = options

    def duties(self, stop: threading.Event) -> list[Duty]:
        """The duties, whose turns end soon once `stop` is set."""
        return [self._compact(stop)]

    def compactor(self, stop: threading.Event) -> Compactor:
        """What merges files; for one thread."""
        return Compactor(self._catalog, self._store, options=self._options.compaction, stop=stop)

    def _compact(self, stop: threading.Event) -> Duty:
        compactor = self.compactor(stop)

        def act() -> None:
            step_back()
            compactor.turn()

        return Duty("compact", self._options.compaction_every, act)
