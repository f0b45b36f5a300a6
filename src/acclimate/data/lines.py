"""Bytes to numbered lines of text, whatever the bytes: bounded memory, UTF-8 only."""

import re
from collections.abc import Iterator
from io import BufferedIOBase

from acclimate.data.problem import Refused

LONGEST = 16 * 2**20  # bytes of one line
_UTF32 = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
_UTF16 = re.compile(rb"\xff\xfe|\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0]")  # by its mark, or by its zeros


def lines(stream: BufferedIOBase) -> Iterator[tuple[int, str | Refused]]:
    """Numbered lines as text. Never holds more than LONGEST bytes of one."""
    number = offset = 0
    while raw := stream.readline(LONGEST):
        number += 1
        length = len(raw)
        if length == LONGEST and not raw.endswith(b"\n"):
            while not raw.endswith(b"\n") and (raw := stream.readline(LONGEST)):
                length += len(raw)
            yield number, Refused("too long", f"is {length:,} bytes long; a line may have {LONGEST:,}.")
        else:
            yield number, decoded(raw, offset)
        offset += length


def decoded(raw: bytes, offset: int = 0) -> str | Refused:
    """UTF-8 to text; at the file's start a byte order mark is dropped and UTF-16 known."""
    if not offset and (wide := "UTF-32" if raw[:4] in _UTF32 else "UTF-16" if _UTF16.match(raw) else ""):
        return Refused("encoding", f"is {wide}, not UTF-8; convert the file: iconv -f {wide} -t UTF-8 OLD > NEW")
    try:
        return raw.decode("utf-8" if offset else "utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"0x{raw[error.start]:02x} at byte {offset + error.start} of the file"
        return Refused("encoding", f"is not UTF-8: {place}; save the file as UTF-8.")
