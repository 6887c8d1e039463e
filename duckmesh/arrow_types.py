"""Questions about Arrow types that several rooms ask."""

from typing import Final

import pyarrow as pa
import pyarrow.types as pat

from duckmesh.identifiers import FIELD_ID


def is_list(kind: pa.DataType) -> bool:
    """Whether its values are lists, in whichever of Arrow's layouts."""
    return bool(
        pat.is_list(kind)
        or pat.is_large_list(kind)
        or pat.is_fixed_size_list(kind)
        or pat.is_list_view(kind)
        or pat.is_large_list_view(kind)
    )


DELETED_FIELD_ID: Final = 2_147_483_644
"""Of the column that says that a row deletes its key: `_deleted` in Apache Iceberg's specification,
which reserves the id, so that no column of a table has it.
"""


def deleted_field(schema: pa.Schema) -> pa.Field:
    """The column that says whether a row deletes its key, by a name that the schema has not."""
    name, taken = "_deleted", {each.lower() for each in schema.names}
    while name in taken:
        name = f"_{name}"
    return pa.field(name, pa.bool_(), metadata={FIELD_ID: str(DELETED_FIELD_ID).encode()})
