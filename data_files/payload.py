"""The inline payload: Arrow IPC record-batch messages, end to end, without their schema.

The schema is the table's of the envelope's version, so a one-row write carries no kilobyte of
schema with it. Format: the encapsulated message format of the Arrow columnar specification; buffers
are zstd-compressed where a batch is large enough to gain.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import pyarrow as pa

from data_files.batch_size import bytes_of
from duckmesh.errors import Corrupt

_COMPRESS_FROM_BYTES: Final = 4_096
_ZSTD: Final = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", compression_level=1))


def encode_batches(batches: Iterable[pa.RecordBatch]) -> bytes:
    """The messages of the batches, in order. Batches have no dictionary columns."""
    return b"".join(_encode(batch) for batch in batches)


def _encode(batch: pa.RecordBatch) -> bytes:
    if bytes_of(batch) < _COMPRESS_FROM_BYTES:
        return bytes(batch.serialize())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=_ZSTD) as writer:
        writer.write_batch(batch)
    # The stream begins with the schema message, which the payload leaves out.
    messages = list(pa.ipc.MessageReader.open_stream(sink.getvalue()))
    return bytes(messages[1].serialize())


def decode_batches(content: bytes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of a payload. Raises Corrupt when the bytes are not of this schema."""
    source = pa.BufferReader(content)
    try:
        while source.tell() < source.size():
            yield pa.ipc.read_record_batch(pa.ipc.read_message(source), schema)
    except (pa.ArrowInvalid, pa.ArrowException, OSError, EOFError) as cause:
        raise Corrupt("an inline payload does not decode") from cause
