"""A small ctypes binding over libbpf.so.1: open an object, set its constants, load it, attach, drain the ring buffer.

In: the path of a compiled object. Out: `Object`, its `Program`s, `Map`s and `Link`s, a `RingBuffer`, and `KernelBtf`,
which answers what the running kernel has. Only what the loader needs is bound. What surprises: libbpf explains itself
through a log callback only, so every failure becomes a `BpfError` that carries the end of that log; and an exception
inside a ctypes callback is swallowed, so callbacks keep it and the caller raises it.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from collections import deque
from collections.abc import Iterator
from ctypes import CFUNCTYPE, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

LIBRARY: Final = "libbpf.so.1"
KERNEL_BTF: Final = Path("/sys/kernel/btf")

# enum BTF_KIND_* (UAPI linux/btf.h)
STRUCT, ENUM, TYPEDEF, FUNC, DATASEC = 4, 6, 8, 12, 15

_LOG_BYTES: Final = 4096
_LOG_LINES: Final = 25
_LOG: Final = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_VA_LIST_BYTES: Final = 32  # arm64; x86-64's has 24


class BpfError(OSError):
    """libbpf refused: errno, what was tried, the program at fault when the log names one, and the log's end."""

    def __init__(self, errno: int, what: str, log: str = "", program: str | None = None) -> None:
        super().__init__(errno, f"{what}: {os.strerror(errno)}")
        self.what = what
        self.log = log
        self.program = program


class _Type(ctypes.Structure):
    """struct btf_type"""

    _fields_ = (("name_off", c_uint32), ("info", c_uint32), ("size_or_type", c_uint32))


class _Library:
    """libbpf with typed functions and its log captured."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL(LIBRARY, use_errno=True)
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        vsnprintf = ctypes.CDLL(None).vsnprintf
        vsnprintf.argtypes = (c_void_p, c_size_t, c_char_p, c_void_p)
        first = ctypes.create_string_buffer(_LOG_BYTES)

        def log(level: int, form: bytes, arguments: int) -> int:
            if level > 1:  # LIBBPF_DEBUG
                return 0
            # A va_list is handed over by reference on x86-64 and arm64 and used up by reading: read a copy first, to
            # learn the length. A verifier log comes in one call, may be megabytes, and has the cause at its end.
            copy = ctypes.create_string_buffer(ctypes.string_at(arguments, _VA_LIST_BYTES), _VA_LIST_BYTES)
            length, buffer = vsnprintf(first, _LOG_BYTES, form, ctypes.addressof(copy)), first
            if length >= _LOG_BYTES:
                buffer = ctypes.create_string_buffer(length + 1)
                vsnprintf(buffer, length + 1, form, arguments)
            self._log.extend(buffer.value.decode("utf-8", "replace").rstrip("\n").split("\n"))
            return 0

        self._callback = _LOG(log)  # libbpf keeps the pointer: it must live as long as the library
        self._lib.libbpf_set_print.restype = c_void_p
        self._lib.libbpf_set_print(self._callback)
        self._functions: dict[str, Any] = {}

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """The function `name` with its types set; pointers must be c_void_p, an int would cut them to 32 bits."""
        if name not in self._functions:
            function = getattr(self._lib, name)
            function.restype = result
            function.argtypes = arguments
            self._functions[name] = function
        return self._functions[name]

    def take_log(self) -> str:
        """What libbpf said since the last time."""
        text = "\n".join(self._log)
        self._log.clear()
        return text


_library: _Library | None = None


def library() -> _Library:
    """libbpf, loaded once; raises OSError when it is not installed."""
    global _library
    if _library is None:
        _library = _Library()
    return _library


def give_back_memory() -> None:
    """Let the system have what loading needed for a moment: glibc keeps some 10 MiB of it otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _failure(what: str, status: int | None = None) -> BpfError:
    errno = -status if status else ctypes.get_errno()
    log = library().take_log()
    named = re.findall(r"prog '([^']+)': (?:failed|BPF program load failed)", log)
    return BpfError(errno, what, log, named[-1] if named else None)


class Btf:
    """Types by name, of a kernel, a module or an object; the handle belongs to whoever made it."""

    def __init__(self, handle: int) -> None:
        self.handle: Final = handle

    def find(self, name: str, kind: int) -> int:
        """The type's number; 0 when there is none."""
        find = library().function("btf__find_by_name_kind", c_int, c_void_p, c_char_p, c_uint32)
        return max(0, int(find(self.handle, name.encode(), kind)))

    def members(self, structure: str) -> list[tuple[str, int, int]]:
        """(name, offset, size) of each member of `struct structure`, in bytes; empty when there is none."""
        resolve = library().function("btf__resolve_size", ctypes.c_int64, c_void_p, c_uint32)
        return [
            (self._name(name), bits // 8, int(resolve(self.handle, kind)))
            for name, kind, bits in self._records(self.find(structure, STRUCT), "=III")
        ]

    def variables(self, section: str) -> dict[str, tuple[int, int]]:
        """(offset, size) of each variable of a data section, in bytes."""
        return {
            self._name(self._type(variable).name_off): (offset, size)
            for variable, offset, size in self._records(self.find(section, DATASEC), "=III")
        }

    def enum(self, enumeration: str) -> dict[int, str]:
        """The values of `enum enumeration` with their names; empty when there is no such enum."""
        records = self._records(self.find(enumeration, ENUM), "=Ii")
        return {value: self._name(name) for name, value in records}

    def parameters(self, function: str) -> list[str]:
        """The names of a function's parameters, in order; empty when there is no such function."""
        number = self.find(function, FUNC)
        return [self._name(name) for name, _ in self._records(self._type(number).size_or_type, "=II")] if number else []

    def pointed_arity(self, typedef: str) -> int:
        """How many parameters the function has that `typedef` is a pointer to; 0 when there is no such typedef."""
        number = self.find(typedef, TYPEDEF)
        if not number:
            return 0
        pointer = self._type(number).size_or_type
        return int(self._type(self._type(pointer).size_or_type).info) & 0xFFFF

    def _records(self, number: int, form: str) -> Iterator[tuple[int, ...]]:
        """The fixed-size records (members, values, parameters) that follow a type; none for number 0."""
        if not number:
            return iter(())
        address = self._address(number)
        count = _Type.from_address(address).info & 0xFFFF
        raw = ctypes.string_at(address + ctypes.sizeof(_Type), count * struct.calcsize(form))
        return struct.iter_unpack(form, raw)

    def _address(self, number: int) -> int:
        return int(library().function("btf__type_by_id", c_void_p, c_void_p, c_uint32)(self.handle, number))

    def _type(self, number: int) -> _Type:
        return _Type.from_address(self._address(number))

    def _name(self, offset: int) -> str:
        name = library().function("btf__name_by_offset", c_char_p, c_void_p, c_uint32)
        return bytes(name(self.handle, offset)).decode("ascii", "replace")


class KernelBtf:
    """The running kernel's own type information, and its modules': which tracepoints, functions and enums there are."""

    def __init__(self) -> None:
        handle = library().function("btf__load_vmlinux_btf", c_void_p)()
        if not handle:
            raise _failure("cannot read the kernel's BTF")
        self.vmlinux: Final = Btf(handle)
        self._modules: dict[str, Btf] = {}
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free it; harmless when repeated."""
        if self._open:
            self._open = False
            free = library().function("btf__free", None, c_void_p)
            for btf in (*self._modules.values(), self.vmlinux):
                free(btf.handle)

    def tracepoint_arguments(self, name: str) -> int:
        """How many arguments a program at the tracepoint gets; 0 when there is no such tracepoint."""
        # The first parameter is the tracepoint's private `void *`.
        return max(0, self.vmlinux.pointed_arity(f"btf_trace_{name}") - 1)

    def parameters(self, function: str, module: str | None = None) -> list[str]:
        """A function's parameter names, from vmlinux or the loaded `module`; empty when neither has it."""
        found = self.vmlinux.parameters(function)
        if not found and module and (btf := self._module(module)):
            found = btf.parameters(function)
        return found

    def enum(self, name: str, module: str | None = None) -> dict[int, str]:
        """The values of an enum with their names, from vmlinux or the loaded `module`; empty when neither has it."""
        found = self.vmlinux.enum(name)
        if not found and module and (btf := self._module(module)):
            found = btf.enum(name)
        return found

    def _module(self, name: str) -> Btf | None:
        """The module's BTF; None, and asked again next time, while it is not loaded."""
        if name not in self._modules and (KERNEL_BTF / name).exists():
            load = library().function("btf__load_module_btf", c_void_p, c_char_p, c_void_p)
            if handle := load(name.encode(), self.vmlinux.handle):
                self._modules[name] = Btf(handle)
        return self._modules.get(name)


class Link:
    """One attached program. Closing detaches it: for fentry that waits for an RCU grace period."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def close(self) -> None:
        """Detach; harmless when repeated."""
        if self._handle:
            handle, self._handle = self._handle, 0
            library().function("bpf_link__destroy", c_int, c_void_p)(handle)


class Program:
    """One program of an object."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self.name: Final = self._text("bpf_program__name")
        self.section: Final = self._text("bpf_program__section_name")

    def _text(self, function: str) -> str:
        return bytes(library().function(function, c_char_p, c_void_p)(self._handle)).decode()

    @property
    def autoload(self) -> bool:
        """Whether `Object.load` will load it."""
        return bool(library().function("bpf_program__autoload", c_bool, c_void_p)(self._handle))

    @autoload.setter
    def autoload(self, value: bool) -> None:
        status = library().function("bpf_program__set_autoload", c_int, c_void_p, c_bool)(self._handle, value)
        if status:
            raise _failure(f"cannot switch {self.name}", status)

    def attach(self) -> Link:
        """Attach it where its section says; raises BpfError."""
        link = library().function("bpf_program__attach", c_void_p, c_void_p)(self._handle)
        if not link:
            raise _failure(f"cannot attach {self.name}")
        return Link(link)


class Map:
    """One map of a loaded object; keys and values are bytes."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @property
    def fd(self) -> int:
        """Its file descriptor, valid after load."""
        return int(library().function("bpf_map__fd", c_int, c_void_p)(self._handle))

    @property
    def value_size(self) -> int:
        """Bytes in one value."""
        return int(library().function("bpf_map__value_size", c_uint32, c_void_p)(self._handle))

    def set_max_entries(self, entries: int) -> None:
        """Set the size before load (bytes for a ring buffer)."""
        status = library().function("bpf_map__set_max_entries", c_int, c_void_p, c_uint32)(self._handle, entries)
        if status:
            raise _failure("cannot set a map's size", status)

    def initial(self) -> memoryview:
        """The bytes that a data section will have when loaded, writable. Dead memory after load (libbpf < 1.5)."""
        size = c_size_t()
        value = library().function("bpf_map__initial_value", c_void_p, c_void_p, c_void_p)
        address = value(self._handle, byref(size))
        if not address:
            raise _failure("a data section has no initial value")
        return memoryview((ctypes.c_ubyte * size.value).from_address(address)).cast("B")

    def __setitem__(self, key: bytes, value: bytes) -> None:
        update = library().function("bpf_map_update_elem", c_int, c_int, c_char_p, c_char_p, ctypes.c_uint64)
        status = update(self.fd, key, value, 0)
        if status:
            raise _failure("cannot write into a map", status)

    def __delitem__(self, key: bytes) -> None:
        """Harmless when there is no such key."""
        library().function("bpf_map_delete_elem", c_int, c_int, c_char_p)(self.fd, key)

    def __getitem__(self, key: bytes) -> bytes:
        value = ctypes.create_string_buffer(self.value_size)
        lookup = library().function("bpf_map_lookup_elem", c_int, c_int, c_char_p, c_void_p)
        if lookup(self.fd, key, value):
            raise KeyError(key)
        return value.raw


class Object:
    """A compiled object: open, set constants and autoload, load, attach its programs."""

    def __init__(self, path: Path) -> None:
        open_file = library().function("bpf_object__open_file", c_void_p, c_char_p, c_void_p)
        self._handle: int = open_file(os.fsencode(path), None) or 0
        if not self._handle:
            raise _failure(f"cannot open {path}")
        self.btf: Final = Btf(library().function("bpf_object__btf", c_void_p, c_void_p)(self._handle))
        self.programs: Final = {program.name: program for program in self._programs()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unload programs and maps (attached ones stay until their links are closed); harmless when repeated."""
        if self._handle:
            handle, self._handle = self._handle, 0
            library().function("bpf_object__close", None, c_void_p)(handle)

    def load(self) -> None:
        """Load all programs with autoload on: all of them or, with a BpfError that names the culprit, none."""
        status = library().function("bpf_object__load", c_int, c_void_p)(self._handle)
        if status:
            raise _failure("the kernel refused the programs", status)
        library().take_log()

    def map(self, name: str) -> Map:
        """The map called `name`; data sections are maps called .rodata, .bss, .data."""
        find = library().function("bpf_object__find_map_by_name", c_void_p, c_void_p, c_char_p)
        handle = find(self._handle, name.encode())
        if not handle:
            raise _failure(f"the object has no map {name}")
        return Map(handle)

    def _programs(self) -> list[Program]:
        following = library().function("bpf_object__next_program", c_void_p, c_void_p, c_void_p)
        found: list[Program] = []
        handle = following(self._handle, None)
        while handle:
            found.append(Program(handle))
            handle = following(self._handle, handle)
        return found


_SAMPLE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
_FULL: Final = -105  # ENOBUFS: what our callback answers to make libbpf stop after this record


class RingBuffer:
    """The reading end of a ring buffer map that is filled without wakeups."""

    def __init__(self, source: Map) -> None:
        self._records: list[bytes] = []
        self._limit = 0
        self._error: BaseException | None = None

        def sample(_context: int, data: int, size: int) -> int:
            try:
                self._records.append(ctypes.string_at(data, size))
            except BaseException as error:  # KeyboardInterrupt too: ctypes would print it and go on
                self._error = error
                return _FULL
            return _FULL if len(self._records) >= self._limit else 0

        self._callback = _SAMPLE(sample)
        new = library().function("ring_buffer__new", c_void_p, c_int, _SAMPLE, c_void_p, c_void_p)
        self._handle: int = new(source.fd, self._callback, None, None) or 0
        if not self._handle:
            raise _failure("cannot map the ring buffer")

    def drain(self, limit: int) -> list[bytes]:
        """What is there, up to `limit` records; the rest stays for the next call."""
        self._limit = limit
        consume = library().function("ring_buffer__consume", c_int, c_void_p)
        status = consume(self._handle)
        records, self._records = self._records, []
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if status < 0 and status != _FULL:
            raise _failure("cannot read the ring buffer", status)
        return records

    def close(self) -> None:
        """Unmap it; harmless when repeated."""
        if self._handle:
            handle, self._handle = self._handle, 0
            library().function("ring_buffer__free", None, c_void_p)(handle)
