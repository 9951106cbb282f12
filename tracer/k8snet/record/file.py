"""The file of a recording, in frames that can each be read for themselves: docs/replay.md describes every byte.

In: lines and records, from the thread that traces. Out: frames on the disk, at most half a second later, and the same
lines and records when the file is read. Writing is a thread's work, because a disk may hang for seconds, and a trace
that waits for it loses events. Surprising: what is damaged is skipped, so a reader goes on behind it; checksums begin
with the recording's own random number, so that nothing in a packet's payload, and no older file's block, is a frame.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Protocol, Self

from k8snet.agent import lines
from k8snet.errors import K8snetError
from k8snet.event import LAYOUT

MAGIC: Final = b"\x89k8snet\n"
MAJOR, MINOR = 1, 0  # a reader refuses a newer MAJOR; a newer MINOR has kinds that it skips
HEADER: Final = struct.Struct("<8sHHI8sQ")  # magic, major, minor, segment, the recording's own number, the next frame's
MARK: Final = b"\xf5k8\x8f"
FRAME: Final = struct.Struct("<4sHHIQI")  # mark, kind, 0, length of the body, number, checksum of the body
_CHECK: Final = struct.Struct("<I")  # CRC-32 of a header, behind it
BATCH: Final = struct.Struct("<QIH")  # number of the first record, how many, bytes of each
PAYLOAD: Final = struct.Struct("<IH")  # of which record in the batch, bytes
LARGEST: Final = 1 << 26  # bytes of a frame, compressed or not

RECORDS: Final = 1024  # in a frame; four times as many save 2 %
MOST_RECORDS: Final = 1 << 16  # that a reader takes
TEXT: Final = 1 << 16  # bytes of lines in a frame, unless one line is longer
EVERY: Final = 0.5  # seconds from an event to the disk
BULK: Final = 1 << 18  # bytes that are written at once, however young
MOST_WAITING: Final = 1 << 26  # bytes, while the disk does not take any
SMALLEST_RING: Final = 1 << 20
_SEGMENTS: Final = 8  # that a ring has: so much of it goes at once
_OVERHEAD: Final = FRAME.size + _CHECK.size


class Kind(IntEnum):
    """What is in a frame."""

    LINES = 1  # of docs/agent.md
    EVENTS = 2  # records


class State(Protocol):
    """What the lines have said up to now, for the beginning of the next segment."""

    def hear(self, text: str) -> None:
        """A line has been written."""

    def snapshot(self) -> Iterable[str]:
        """The lines that say it again."""


# --- writing ---------------------------------------------------------------------------------------------------------


class Recording:
    """A file, or the segments of a ring, being written; a `Carrier`. A context manager.

    `ring`: bytes that all segments together never exceed; `state`: who knows what each of them begins with. Raises
    K8snetError when the file cannot be made. What goes wrong later never raises: `failure` says it, and if the disk
    refused, no more is written.
    """

    def __init__(self, path: Path, ring: int = 0, state: State | None = None, *, overwrite: bool = False) -> None:
        self._path = path
        self._ring = ring
        self._state = state
        self._id = os.urandom(8)
        self._seed = zlib.crc32(self._id)
        self._frames = 0
        self._segment = 0
        self._sizes: dict[Path, int] = {}  # of the segments that there are, the oldest first
        self._limit = ring // _SEGMENTS
        self._fd = -1
        self._has_space = True
        self._waiting: list[str | tuple[int, Sequence[bytes]]] = []
        self._size = 0
        self._closing = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="k8snet-record", daemon=True)
        self.failure = ""
        _make_way(path, ring, overwrite)
        try:
            self._open()
        except OSError as error:
            self.discard()
            raise _refusal(self._name, error) from None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def line(self, line: object) -> None:
        """Take a line, of those of an agent or of those of a watch."""
        text = lines.written(line)
        self._put(text, len(text))

    def records(self, first: int, records: Sequence[bytes]) -> None:
        """Take records; `first` is the number of the first of them."""
        self._put((first, records), len(records) * LAYOUT.size)

    def close(self) -> str:
        """Everything is on the disk when it returns; or it says why not."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return self.failure

    def discard(self) -> None:
        """There was nothing to record: leave no file."""
        self.close()
        for segment in self._sizes:
            with suppress(OSError):
                segment.unlink()

    def _put(self, what: str | tuple[int, Sequence[bytes]], size: int) -> None:
        with self._change:
            if not self._has_space:
                return
            if self._size + size > MOST_WAITING:
                self.failure = f"the recording {self._path} has gaps: events came faster than they could be written"
                return
            self._waiting.append(what)
            self._size += size
            if self._size >= BULK:
                self._change.notify()

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _write(self) -> None:
        """Until it is closed, or the disk refuses."""
        synced = time.monotonic()
        closing = False
        while not closing:
            with self._change:
                self._change.wait_for(lambda: self._closing or self._size >= BULK, EVERY)
                taken, self._waiting, self._size = self._waiting, [], 0
                closing = self._closing
            try:
                for kind, data in _frames(taken):
                    self._frame(kind, data)
                # Once a second, and in this thread, where nothing waits for it.
                if taken and (closing or time.monotonic() - synced >= 2 * EVERY):
                    os.fdatasync(self._fd)
                    synced = time.monotonic()
            except OSError as error:
                self._give_up(error.strerror or str(error))
                return

    def _give_up(self, why: str) -> None:
        with self._change:
            self.failure = f"the recording {self._path} is incomplete: {why}"
            self._has_space = False
            self._waiting.clear()
            self._size = 0
        if self._fd >= 0:
            with suppress(OSError):
                os.ftruncate(self._fd, self._sizes[self._name])  # of the last frame only a part found room
                if not self._sizes[self._name]:
                    self._name.unlink()

    @property
    def _name(self) -> Path:
        return self._path.with_name(f"{self._path.name}.{self._segment:04}") if self._ring else self._path

    def _open(self) -> None:
        self._segment += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        head = HEADER.pack(MAGIC, MAJOR, MINOR, self._segment, self._id, self._frames)
        self._fd = os.open(self._name, flags, 0o600)
        self._sizes[self._name] = 0
        self._append(head + _CHECK.pack(zlib.crc32(head)))

    def _append(self, data: bytes) -> None:
        """Count it only when all of it is there."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]
        self._sizes[self._name] += len(data)

    def _frame(self, kind: Kind, data: bytes) -> None:
        body = zlib.compress(data, 1)
        if self._ring:
            if self._sizes[self._name] + _OVERHEAD + len(body) > self._limit:
                self._rotate()
            self._make_room(_OVERHEAD + len(body))
        self._append_frame(kind, body)
        if kind == Kind.LINES and self._state is not None:
            for text in data.decode().split("\n"):
                self._state.hear(text)

    def _append_frame(self, kind: Kind, body: bytes) -> None:
        head = FRAME.pack(MARK, kind, 0, len(body), self._frames, zlib.crc32(body, self._seed))
        self._append(head + _CHECK.pack(zlib.crc32(head, self._seed)) + body)
        self._frames += 1

    def _rotate(self) -> None:
        beginning = "\n".join(self._state.snapshot() if self._state is not None else ())
        body = zlib.compress(beginning.encode(), 1)
        size = HEADER.size + _CHECK.size + _OVERHEAD + len(body)
        os.fdatasync(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._make_room(size)
        self._open()
        self._append_frame(Kind.LINES, body)
        self._limit = max(self._ring // _SEGMENTS, 2 * size)

    def _make_room(self, size: int) -> None:
        while sum(self._sizes.values()) + size > self._ring:
            oldest = next(iter(self._sizes), self._name)
            if oldest not in self._sizes or (oldest == self._name and self._fd >= 0):
                raise OSError(errno.EFBIG, f"--ring {self._ring} has no room for what each part begins with")
            oldest.unlink(missing_ok=True)
            del self._sizes[oldest]


def _frames(taken: Iterable[str | tuple[int, Sequence[bytes]]]) -> Iterator[tuple[Kind, bytes]]:
    """What was taken, in that order, as the bodies of frames."""
    text: list[str] = []
    size = 0
    for what in taken:
        if text and (not isinstance(what, str) or size + len(what) > TEXT):
            yield Kind.LINES, "\n".join(text).encode()
            text, size = [], 0
        if isinstance(what, str):
            text.append(what)
            size += len(what)
        else:
            first, records = what
            for start in range(0, len(records), RECORDS):
                yield Kind.EVENTS, packed(first + start, records[start : start + RECORDS])
    if text:
        yield Kind.LINES, "\n".join(text).encode()


def packed(first: int, records: Sequence[bytes]) -> bytes:
    """The body of a frame of events, before it is compressed."""
    size = LAYOUT.size
    head = BATCH.pack(first, len(records), size)
    if all(len(record) == size for record in records):
        return head + b"".join(records)
    payloads = (PAYLOAD.pack(n, len(r) - size) + r[size:] for n, r in enumerate(records) if len(r) > size)
    return b"".join((head, *(record[:size] for record in records), *payloads))


def _make_way(path: Path, ring: int, overwrite: bool) -> None:
    """See that there is nothing at `path`; with `overwrite`, remove the recording that is there."""
    for found in (path, *segments_of(path)) if ring else (path,):
        try:
            mode = found.lstat().st_mode
        except OSError:
            continue  # what is wrong with it, if anything, is said when it is made
        if not stat.S_ISREG(mode):
            raise K8snetError(f"{found} is no file of ours to overwrite", "name another file")
        if not overwrite:
            raise K8snetError(f"there is a file {found} already", "name another file, or add --overwrite")
        try:
            found.unlink()
        except OSError as error:
            raise _refusal(found, error) from None


def _refusal(path: Path, error: OSError) -> K8snetError:
    return K8snetError(
        f"{path} cannot be written: {error.strerror}",
        f"name another file  # see: ls -ld {shlex.quote(str(path.parent))}",
    )


def segments_of(path: Path) -> list[Path]:
    """The files of the ring at `path`, the oldest first."""
    own = re.compile(re.escape(path.name) + r"\.(\d{4,9})")
    with suppress(OSError):
        found = [(int(match[1]), file) for file in path.parent.iterdir() if (match := own.fullmatch(file.name))]
        return [file for _, file in sorted(found)]
    return []


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that is as it was written."""

    kind: int
    data: bytes


class BadFrameError(ValueError):
    """What is in a frame is not what its kind promises."""


@dataclass
class Segment:
    """One file, being read. Raises K8snetError for what is no recording, or one of a newer format.

    Once `frames` is at its end the other fields say what was skipped.
    """

    name: str
    file: BinaryIO
    number: int = 0
    recording: bytes = b""
    expected: int = 0  # the number of the next frame
    missing: int = 0  # frames
    skipped: list[tuple[int, int]] = field(default_factory=list)  # (at which byte, how many)
    torn: int = 0  # bytes at the end: a frame that was being written, or damage

    def __post_init__(self) -> None:
        head = self.file.read(HEADER.size + _CHECK.size)
        if len(head) < HEADER.size + _CHECK.size or not head.startswith(MAGIC):
            raise K8snetError(f"{self.name} is no recording", "k8snet trace --help  # --record makes one")
        _, major, _, self.number, self.recording, self.expected = HEADER.unpack_from(head)
        if _CHECK.unpack_from(head, HEADER.size)[0] != zlib.crc32(head[: HEADER.size]):
            raise K8snetError(f"{self.name} cannot be read: its first bytes are damaged", "see whether there is a copy")
        if major > MAJOR:
            raise K8snetError(
                f"{self.name} is of format {major}, and this k8snet reads up to {MAJOR}", "use a newer k8snet"
            )
        self._seed = zlib.crc32(self.recording)
        self._buffer = bytearray()
        self._at = HEADER.size + _CHECK.size  # where the buffer begins in the file

    def frames(self) -> Iterator[Frame]:
        """Every frame that is as it was written; what is between them is counted."""
        bad_from = -1
        while self._fill(_OVERHEAD):
            body = self._body()
            if body is None:
                bad_from = self._at if bad_from < 0 else bad_from
                self._skip()
                continue
            if bad_from >= 0:
                self.skipped.append((bad_from, self._at - bad_from))
                bad_from = -1
            kind, _, length, number = FRAME.unpack_from(self._buffer)[1:5]
            self.missing += number - self.expected
            self.expected = number + 1
            self._drop(_OVERHEAD + length)
            yield Frame(kind, body)
        bad_from = self._at if bad_from < 0 else bad_from
        self.torn = self._at + len(self._buffer) - bad_from

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size and (more := self.file.read(max(size - len(self._buffer), 1 << 16))):
            self._buffer += more
        return len(self._buffer) >= size

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._at += size

    def _skip(self) -> None:
        """Go on to where the next frame may begin."""
        found = self._buffer.find(MARK, 1)
        # Of a mark the beginning may be at the end of what was read.
        self._drop(found if found > 0 else max(1, len(self._buffer) - len(MARK) + 1))

    def _body(self) -> bytes | None:
        """The body of the frame at which the buffer begins; None when it is none, or damaged."""
        head = bytes(self._buffer[: FRAME.size])
        mark, _, _, length, number, check = FRAME.unpack(head)
        if mark != MARK or _CHECK.unpack_from(self._buffer, FRAME.size)[0] != zlib.crc32(head, self._seed):
            return None
        if length > LARGEST or number < self.expected or not self._fill(_OVERHEAD + length):
            return None
        body = bytes(self._buffer[_OVERHEAD : _OVERHEAD + length])
        if zlib.crc32(body, self._seed) != check:
            return None
        try:
            # Bounded: few bytes can be made to grow to very many.
            whole = zlib.decompressobj()
            data = whole.decompress(body, LARGEST)
        except zlib.error:
            return None
        return data if whole.eof else None


def unpacked(data: bytes, wanted: int) -> tuple[int, list[bytes]]:
    """The number of the first record in a frame of events, and all of them; of `wanted` bytes. Raises BadFrameError."""
    try:
        first, count, size = BATCH.unpack_from(data)
        at = BATCH.size + count * size
        if count > MOST_RECORDS or size != wanted or at > len(data):
            raise BadFrameError(f"{count} records of {size} bytes promised, {len(data)} bytes found")
        records = [data[i : i + size] for i in range(BATCH.size, at, size)]
        while at < len(data):
            number, more = PAYLOAD.unpack_from(data, at)
            at += PAYLOAD.size
            if number >= count or at + more > len(data):
                raise BadFrameError("a payload of no record, or cut")
            records[number] += data[at : at + more]
            at += more
    except struct.error as error:
        raise BadFrameError(str(error)) from None
    return first, records
