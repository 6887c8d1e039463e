"""Questions about Arrow types that several rooms ask."""

import pyarrow as pa
import pyarrow.types as pat


def is_list(kind: pa.DataType) -> bool:
    """Whether its values are lists, in whichever of Arrow's layouts."""
    return bool(
        pat.is_list(kind)
        or pat.is_large_list(kind)
        or pat.is_fixed_size_list(kind)
        or pat.is_list_view(kind)
        or pat.is_large_list_view(kind)
    )
