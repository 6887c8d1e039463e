"""How storage is kept in order: compaction, retention, garbage collection."""

from pydantic import Field

from duckmesh.settings_groups.fields import MIB, Group, Span, UserPath


class MaintenanceSettings(Group):
    """How storage is kept in order."""

    in_coordinator: bool = Field(
        default=True,
        description="Whether `duckmesh coordinate` maintains too; else `duckmesh maintain` does.",
    )
    compaction_interval_seconds: float = Field(
        default=10, gt=0, le=86_400, description="How often to look for files to merge."
    )
    compaction_target_bytes: int = Field(
        default=128 * MIB,
        ge=MIB,
        description="The size of a merged file, about; half of it and more is left alone.",
    )
    compaction_min_files: int = Field(
        default=8, ge=2, le=1000, description="Files of about one size that make a merge worth it."
    )
    compaction_rest_seconds: float = Field(
        default=60,
        ge=0,
        le=86_400,
        description="A table to which nothing was added for so long is merged from four files on.",
    )
    compaction_bytes_per_second: int = Field(
        default=64 * MIB, ge=64 * 1024, description="What one process reads for merges, at most."
    )
    compaction_sort_bytes: int = Field(
        default=64 * MIB,
        ge=MIB,
        description="The memory in which rows are sorted; beyond, they are sorted on disk.",
    )
    compaction_partitions_max: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Partitions that one merge cuts; rows of more stay together for the next.",
    )
    compaction_lag_files: int = Field(
        default=1000, ge=1, description="More small files in one table than this are logged."
    )
    scratch_directory: UserPath | None = Field(
        default=None,
        description="Where merges sort on disk; the system's temporary directory when not set.",
    )
    snapshot_retention_days: float = Field(
        default=7, ge=0, le=36_500, description="How far back in time queries can read."
    )
    snapshots_kept_min: int = Field(
        default=100, ge=1, description="The newest snapshots that stay, whatever their age."
    )
    retention_interval_seconds: float = Field(
        default=60, gt=0, le=86_400, description="How often to expire snapshots and delete files."
    )
    gc_safety_age_seconds: float = Field(
        default=7200,
        ge=0,
        description=(
            "How long a file is spared that no snapshot reads; never less than a ticket's and a "
            "query's longest time together."
        ),
    )
    orphan_grace_seconds: float = Field(
        default=86_400,
        ge=60,
        description=(
            "How long an object is spared that nothing names. A write may take half of it."
        ),
    )
    orphan_interval_seconds: float = Field(
        default=21_600, gt=0, le=604_800, description="How often to list the store for orphans."
    )
    run_history_days: float = Field(
        default=30, gt=0, le=3650, description="How long runs of maintenance are remembered."
    )
    snapshot_retention = Span("snapshot_retention_days")
    retention_interval = Span("retention_interval_seconds")
    gc_safety_age = Span("gc_safety_age_seconds")
    orphan_grace = Span("orphan_grace_seconds")
    orphan_interval = Span("orphan_interval_seconds")
    run_history = Span("run_history_days")
    compaction_interval = Span("compaction_interval_seconds")
    compaction_rest = Span("compaction_rest_seconds")
