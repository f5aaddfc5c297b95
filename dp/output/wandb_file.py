"""The file in which W&B records a run, `run-<id>.wandb`: the framing of LevelDB's log around W&B's own messages.

wandb 0.31 has no reader of it in Python. Its messages are `wandb.proto.wandb_internal_pb2.Record`.
"""

import struct
from collections.abc import Iterator

HEADER = 7  # bytes: ":W&B", the magic number and the version
BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def frames(data: bytes) -> Iterator[bytes]:
    """The messages in the bytes of a file, up to the first incomplete one."""
    place, parts = HEADER, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:  # the rest of a block that is too short for a head
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        body = data[place + 7 : place + 7 + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(body) < length:
            return
        place += 7 + length
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts
