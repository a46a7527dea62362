"""Read the blocks of a tar archive from front to back: its headers, and the bytes of its files."""

from __future__ import annotations

import io
import re
import shutil
import tarfile
import tempfile
from tarfile import BLOCKSIZE, TarInfo
from typing import BinaryIO

from dp.data.archives.archive_kinds import REPACK
from dp.data.archives.decompress import CHUNK, CutOff
from dp.data.decode import Refused

SPOOL_BYTES = 16 << 20  # of a compressed tar's images that stay in memory
ROOM_LEFT = 1 << 30  # bytes that stay free on the disk, for the runs that go on
LOST_BYTES = 256 << 20  # that are searched for the next header after a damaged one
CHECKSUM = re.compile(rb"[0-7 \0]{8}")


class BlockReader:
    """Reads a tar archive from front to back.

    size: the size of a file that can seek, None for a compressed one. spool: receives the files of a compressed one.
    """

    def __init__(self, file: BinaryIO, size: int | None, spool: BinaryIO | None):
        self.file, self.size, self.spool = file, size, spool
        self.padding = 0  # bytes that fill the last block of what was read
        self.has_begun = False  # whether a valid header has been read
        self.is_lost = False  # whether a damaged header came last
        self.is_over = False  # whether the archive is cut off

    def header(self) -> tuple[TarInfo, bytes] | None:
        """Return the next header, parsed and as bytes; None at the end. Skips a damaged one, and sets `is_lost`."""
        lost = 0
        while not self.is_over and lost < LOST_BYTES:
            block = self.file.read(self.padding + BLOCKSIZE)[self.padding :]
            self.padding = 0
            if not block:
                return None
            if len(block) < BLOCKSIZE:
                raise CutOff("its end is missing")
            if not self.is_lost and block.count(0) == BLOCKSIZE:
                return self._finish()
            if not self.is_lost or CHECKSUM.fullmatch(block, 148, 156):
                try:
                    info = TarInfo.frombuf(block, "utf-8", "surrogateescape")
                    if info.size >= 0:
                        return info, block
                except (tarfile.HeaderError, ValueError):
                    pass
            self.is_lost = True
            lost += BLOCKSIZE
        return None

    def _finish(self) -> None:
        """Read the rest of a compressed archive, because its checksum is verified at the very end."""
        while self.size is None and self.file.read(CHUNK):
            pass

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes. Raises CutOff where there are fewer."""
        data = self.file.read(self.padding + count)[self.padding :]
        if len(data) < count:
            raise CutOff("its end is missing")
        self.padding = -count % BLOCKSIZE
        return data

    def skip(self, count: int) -> None:
        if self.size is None:
            return self._copy(count, None)
        if self.file.tell() + self.padding + count > self.size:
            raise CutOff("its end is missing")
        self.file.seek(self.padding + count, io.SEEK_CUR)
        self.padding = -count % BLOCKSIZE

    def keep(self, count: int) -> tuple[BinaryIO, int]:
        """Skip the next `count` bytes; return a file that holds them, and their offset in it."""
        if not self.spool:
            offset = self.file.tell() + self.padding
            self.skip(count)
            return self.file, offset
        offset = self.spool.tell()
        if offset + count > SPOOL_BYTES and shutil.disk_usage(tempfile.gettempdir()).free < count + ROOM_LEFT:
            raise Refused(f"there is no room on the disk to unpack it; {REPACK}, which is read in place")
        self._copy(count, self.spool)
        return self.spool, offset

    def _copy(self, count: int, into: BinaryIO | None) -> None:
        self.read(0)
        left = count
        while left:
            piece = self.file.read(min(CHUNK, left))
            if not piece:
                raise CutOff("its end is missing")
            if into:
                into.write(piece)
            left -= len(piece)
        self.padding = -count % BLOCKSIZE
