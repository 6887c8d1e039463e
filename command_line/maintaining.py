"""Who holds whom where storage is maintained."""

from catalog.connection import Catalog
from command_line.coordinating import consumer_id
from command_line.stores import open_object_store
from coordinator.compact import CompactionOptions
from coordinator.compaction_choice import CompactionSizes
from coordinator.maintenance import Maintenance, MaintenanceOptions
from duckmesh.settings import Settings


def new_maintenance(settings: Settings, catalog: Catalog) -> Maintenance:
    """Maintenance over the settings' store. It does nothing by itself."""
    return Maintenance(catalog, open_object_store(settings), options=_options(settings))


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
            scratch=group.scratch_directory,
            lag_files=group.compaction_lag_files,
        ),
        compaction_every=group.compaction_interval,
    )
