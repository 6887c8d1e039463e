"""Who holds whom where storage is maintained."""

from datetime import timedelta

from catalog.connection import Catalog
from catalog.retention import Retention
from command_line.coordinating import consumer_id
from command_line.stores import open_object_store
from coordinator.collect import CollectOptions
from coordinator.compact import CompactionOptions
from coordinator.compaction_choice import CompactionSizes
from coordinator.maintenance import Maintenance, MaintenanceOptions
from duckmesh.settings import Settings
from ingest_bus.port import IngestBus


def new_maintenance(settings: Settings, catalog: Catalog, bus: IngestBus) -> Maintenance:
    """Maintenance over the settings' store. It does nothing by itself."""
    return Maintenance(catalog, bus, open_object_store(settings), options=_options(settings))


def _options(settings: Settings) -> MaintenanceOptions:
    group = settings.maintenance
    target_bytes = group.compaction_target_bytes
    return MaintenanceOptions(
        compaction=CompactionOptions(
            holder=consumer_id(settings),
            sizes=CompactionSizes(
                target_bytes=target_bytes,
                job_max_bytes=8 * target_bytes,
                min_files=group.compaction_min_files,
            ),
            rest=group.compaction_rest,
            lease=settings.coordinator.lease,
            bytes_per_second=group.compaction_bytes_per_second,
            sort_bytes=group.compaction_sort_bytes,
            partitions_max=group.compaction_partitions_max,
            scratch=group.scratch_directory,
            lag_files=group.compaction_lag_files,
        ),
        collect=CollectOptions(
            retention=Retention(
                kept_for=group.snapshot_retention, kept_at_least=group.snapshots_kept_min
            ),
            safety_age=max(group.gc_safety_age, _longest_read(settings)),
            orphan_grace=group.orphan_grace,
            history=group.run_history,
        ),
        compaction_every=group.compaction_interval,
        retention_every=group.retention_interval,
        orphans_every=group.orphan_interval,
    )


def _longest_read(settings: Settings) -> timedelta:
    """How long after its snapshot was chosen a query may still open files."""
    query = settings.query
    return settings.auth.ticket_lifetime + query.wall_time + query.fetch_timeout
