"""Files compressed as one stream, read forwards in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError

_CHUNK = 1 << 20
_MEMORY = 256 << 20
"""Four times what the highest preset of xz needs to unpack."""
_XZ_MAGIC = (b"\xfd7zXZ\0", b"\x5d\0\0")
_MAGIC_BYTES = 8


class _Xz(io.RawIOBase):
    """Streams of xz or lzma, read forwards: `lzma.open` takes whatever memory their headers ask for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._decompressor = lzma.LZMADecompressor(memlimit=_MEMORY)
        self._position = 0

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, _whence: int = io.SEEK_SET) -> int:
        """Forwards, from the start."""
        while self._position < position and self._next(min(_CHUNK, position - self._position)):
            pass
        return self._position

    def readinto(self, buffer: Any) -> int:
        content = self._next(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _next(self, most: int) -> bytes:
        """Up to `most` bytes; none at the end.

        Raises:
            UserError: it would take more memory than `_MEMORY`.
        """
        content = b""
        while not content:
            packed = b""
            if self._decompressor.eof:
                if not (packed := self._next_stream()):
                    break
                self._decompressor = lzma.LZMADecompressor(memlimit=_MEMORY)
            elif self._decompressor.needs_input and not (packed := self._file.read(io.DEFAULT_BUFFER_SIZE)):
                raise EOFError("it ends in the middle of a stream")
            try:
                content = self._decompressor.decompress(packed, most)
            except lzma.LZMAError as error:
                if "limit" not in str(error):
                    raise
                raise UserError(
                    f"data.root: {self._path}: damaged, or compressed so that more than {_MEMORY >> 20} MiB of "
                    "memory are needed; pack it anew with xz -9 or less"
                ) from error
        self._position += len(content)
        return content

    def _next_stream(self) -> bytes:
        """How it starts, after padding. Other bytes after the last one count for nothing, as for `lzma.open`."""
        start = self._decompressor.unused_data.lstrip(b"\0")
        while len(start) < _MAGIC_BYTES and (packed := self._file.read(io.DEFAULT_BUFFER_SIZE)):
            start = (start + packed).lstrip(b"\0")
        return start if start.startswith(_XZ_MAGIC) else b""


_MAGIC: tuple[tuple[bytes, Callable[[Path], Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    *((magic, lambda path: io.BufferedReader(_Xz(path))) for magic in _XZ_MAGIC),
)


def unpacked(path: Path) -> IO[bytes]:
    """The file's content, unpacked where it is compressed by gzip, bzip2, xz or lzma; by its first bytes."""
    with path.open("rb") as file:
        start = file.read(_MAGIC_BYTES)
    opener: Callable[[Path], Any] = next((o for magic, o in _MAGIC if start.startswith(magic)), lambda p: p.open("rb"))
    stream: IO[bytes] = opener(path)
    return stream
