"""Does the store work? Ask it, with one small object."""

from typing import Final

from duckmesh.errors import NotFound
from duckmesh.identifiers import new_file_id
from object_store.failures import unavailable
from object_store.port import ObjectStore

_CONTENT: Final = b"duckmesh asks whether this store works"


def probe(store: ObjectStore) -> None:
    """Write, read, list and delete a small object. Raises Unavailable when that does not work.

    Its key cannot lie in a tenant's prefix: no tenant's name begins with '_'.
    """
    folder = f"_probe/{new_file_id()}"
    key = f"{folder}/object"
    store.put(key, _CONTENT)
    try:
        content = store.get(key)
    except NotFound as error:
        raise unavailable("show what was just written", key, "check how it is set up") from error
    if content != _CONTENT or [stat.key for stat in store.list(folder)] != [key]:
        raise unavailable("return what was just written", key, "check how it is set up")
    store.delete(key)
