"""The settings, group by group: each with its default, its bounds and its meaning.

Values are plain and their units stand last in the names; `timedelta`s for use inside are derived.
"""

from duckmesh.settings_groups.audit import AuditSettings
from duckmesh.settings_groups.coordinator import CoordinatorSettings
from duckmesh.settings_groups.doors import DoorSettings, FlightSettings, HttpSettings
from duckmesh.settings_groups.fields import Form, Group, UserPath
from duckmesh.settings_groups.identities import AuthSettings
from duckmesh.settings_groups.maintenance import MaintenanceSettings
from duckmesh.settings_groups.process import LogFormat, LoggingSettings, LogLevel, Profile
from duckmesh.settings_groups.query import QuerySettings
from duckmesh.settings_groups.quotas import QuotaSettings
from duckmesh.settings_groups.stores import CacheSettings, CatalogSettings, StoreSettings
from duckmesh.settings_groups.telemetry import TelemetrySettings
from duckmesh.settings_groups.writes import IngestSettings, TransactionSettings

__all__ = [
    "AuditSettings",
    "AuthSettings",
    "CacheSettings",
    "CatalogSettings",
    "CoordinatorSettings",
    "DoorSettings",
    "FlightSettings",
    "Form",
    "Group",
    "HttpSettings",
    "IngestSettings",
    "LogFormat",
    "LogLevel",
    "LoggingSettings",
    "MaintenanceSettings",
    "Profile",
    "QuerySettings",
    "QuotaSettings",
    "StoreSettings",
    "TelemetrySettings",
    "TransactionSettings",
    "UserPath",
]
