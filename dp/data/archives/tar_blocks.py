"""Read the headers and file contents of a tar archive sequentially."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
import tempfile
from tarfile import BLOCKSIZE, TarInfo
from typing import BinaryIO

from dp.data.archives.archive_kinds import REPACK
from dp.data.archives.decompress import CHUNK_BYTES, Truncated
from dp.data.decode import InvalidImage

SPOOL_BYTES = 16 << 20  # images of a compressed tar are kept in memory up to this size, then on disk
RESERVED_BYTES = 1 << 30  # disk space that is left free for training runs
RESYNC_BYTES = 256 << 20  # how far to search for the next header after a damaged one
CHECKSUM = re.compile(rb"[0-7 \0]{8}")  # the checksum field of a plausible header


class BlockReader:
    """Reads a tar archive sequentially.

    size: the size of `file` in bytes, or None if it is a decompressed stream, which cannot seek. spool: receives the
    extracted contents in that case.
    """

    def __init__(self, file: BinaryIO, size: int | None, spool: BinaryIO | None):
        self.file, self.size, self.spool = file, size, spool
        self.padding = 0  # bytes up to the next block after the last read
        self.has_valid_header = False  # whether a valid header has been read
        self.has_damaged_header = False  # whether the header before the last valid one is damaged
        self.is_truncated = False  # whether the archive ends within a file

    def header(self) -> tuple[TarInfo, bytes] | None:
        """Return the next header, parsed and as bytes, or None at the end. If it is damaged, set `has_damaged_header`
        and search for the next valid one. Raises Truncated.
        """
        skipped = 0
        while not self.is_truncated and skipped < RESYNC_BYTES:
            block = self.file.read(self.padding + BLOCKSIZE)[self.padding :]
            self.padding = 0
            if not block:
                return None
            if len(block) < BLOCKSIZE:
                raise Truncated("its end is missing")
            if not self.has_damaged_header and block.count(0) == BLOCKSIZE:
                return self._finish()
            if not self.has_damaged_header or CHECKSUM.fullmatch(block, 148, 156):
                try:
                    info = TarInfo.frombuf(block, "utf-8", "surrogateescape")
                    if info.size >= 0:
                        return info, block
                except (tarfile.HeaderError, ValueError):
                    pass
            self.has_damaged_header = True
            skipped += BLOCKSIZE
        return None

    def _finish(self) -> None:
        """Read the rest of a compressed archive, whose checksum is verified only at the end."""
        while self.size is None and self.file.read(CHUNK_BYTES):
            pass

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes. Raises Truncated if there are fewer."""
        data = self.file.read(self.padding + count)[self.padding :]
        if len(data) < count:
            raise Truncated("its end is missing")
        self.padding = -count % BLOCKSIZE
        return data

    def skip(self, count: int) -> None:
        """Skip `count` bytes. Raises Truncated if there are fewer."""
        if self.size is None:
            return self._copy(count, None)
        if self.file.tell() + self.padding + count > self.size:
            raise Truncated("its end is missing")
        self.file.seek(self.padding + count, io.SEEK_CUR)
        self.padding = -count % BLOCKSIZE

    def extract(self, count: int) -> tuple[BinaryIO, int]:
        """Skip the next `count` bytes. Return a file that holds them, and their offset in it. Raises Truncated, and
        InvalidImage if they do not fit on the disk.
        """
        if not self.spool:
            offset = self.file.tell() + self.padding
            self.skip(count)
            return self.file, offset
        offset = self.spool.tell()
        if offset + count > SPOOL_BYTES and shutil.disk_usage(tempfile.gettempdir()).free < count + RESERVED_BYTES:
            raise InvalidImage(f"not enough disk space to unpack it; {REPACK}, which is read in place")
        self._copy(count, self.spool)
        return self.spool, offset

    def _copy(self, count: int, target: BinaryIO | None) -> None:
        self.read(0)
        left = count
        while left:
            chunk = self.file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise Truncated("its end is missing")
            if target:
                target.write(chunk)
            left -= len(chunk)
        self.padding = -count % BLOCKSIZE
