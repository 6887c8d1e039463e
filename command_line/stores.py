"""The object store that the settings name."""

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.settings import Settings, StoreSettings
from object_store.open import open_store
from object_store.options import StoreOptions
from object_store.port import ObjectStore


def open_object_store(settings: Settings) -> ObjectStore:
    """The store that the settings name. No I/O. Raises Invalid when they name none."""
    if settings.store.url is None:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            "there is no object store: set store.url (DUCKMESH_STORE_URL); "
            "`duckmesh up` uses a directory without",
        )
    return open_store(settings.store.url, options=_store_options(settings.store))


def _store_options(group: StoreSettings) -> StoreOptions:
    def revealed(name: str) -> str | None:
        secret = getattr(group, name)
        return None if secret is None else str(secret.get_secret_value())

    return StoreOptions(
        endpoint=group.endpoint,
        region=group.region,
        access_key_id=group.access_key_id,
        secret_access_key=revealed("secret_access_key"),
        session_token=revealed("session_token"),
        allow_http=group.allow_http,
        virtual_hosted_style=group.virtual_hosted_style,
        auto_create_bucket=group.auto_create_bucket,
        connect_timeout=group.connect_timeout,
        request_timeout=group.request_timeout,
        retry_timeout=group.retry_timeout,
        max_retries=group.max_retries,
    )
