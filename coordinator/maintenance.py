"""The duties that keep storage in order, as a coordinator or `duckmesh maintain` has them."""

import threading
from dataclasses import dataclass, field
from datetime import timedelta

from catalog.connection import Catalog
from coordinator.collect import CollectOptions, Collector
from coordinator.compact import CompactionOptions, Compactor
from coordinator.duties import Duty
from coordinator.integrity import IntegrityCheck
from coordinator.pace import step_back
from ingest_bus.port import IngestBus
from object_store.port import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceOptions:
    """What is done, and how often."""

    compaction: CompactionOptions
    collect: CollectOptions = field(default_factory=CollectOptions)
    compaction_every: timedelta = timedelta(seconds=10)
    retention_every: timedelta = timedelta(minutes=1)
    orphans_every: timedelta = timedelta(hours=6)


class Maintenance:
    """The rooms that maintenance works in."""

    def __init__(
        self, catalog: Catalog, bus: IngestBus, store: ObjectStore, *, options: MaintenanceOptions
    ) -> None:
        self._catalog = catalog
        self._bus = bus
        self._store = store
        self._options = options

    def duties(self, stop: threading.Event) -> list[Duty]:
        """The duties, whose turns end soon once `stop` is set."""
        return [self._compact(stop), *self._collect(stop)]

    def compactor(self, stop: threading.Event) -> Compactor:
        """What merges files; for one thread."""
        return Compactor(self._catalog, self._store, options=self._options.compaction, stop=stop)

    def collector(self, stop: threading.Event) -> Collector:
        """What gives storage back; for one thread."""
        return Collector(
            self._catalog, self._bus, self._store, options=self._options.collect, stop=stop
        )

    def integrity(self, stop: threading.Event) -> IntegrityCheck:
        """What compares the catalog with the store; for one thread."""
        return IntegrityCheck(self._catalog, self._store, stop=stop)

    def _collect(self, stop: threading.Event) -> list[Duty]:
        return [
            Duty("collect", self._options.retention_every, self.collector(stop).turn),
            Duty(
                "collect-orphans",
                self._options.orphans_every,
                lambda: self.collector(stop).turn(orphans=True),
            ),
        ]

    def _compact(self, stop: threading.Event) -> Duty:
        compactor = self.compactor(stop)

        def act() -> None:
            step_back()
            compactor.turn()

        return Duty("compact", self._options.compaction_every, act)
