"""How large a batch is, without the price of asking Arrow exactly when it is small."""

from typing import Final

import pyarrow as pa

_EXACT_FROM_BYTES: Final = 32 * 2**10


def bytes_of(batch: pa.RecordBatch) -> int:
    """The bytes that the batch's rows take: at most a little too many for a small batch.

    `nbytes` looks at every column's part of its buffers, which costs as much as encoding one row.
    The whole buffers are never smaller than the parts that are in use.
    """
    whole = batch.get_total_buffer_size()
    return int(whole if whole < _EXACT_FROM_BYTES else batch.nbytes)
