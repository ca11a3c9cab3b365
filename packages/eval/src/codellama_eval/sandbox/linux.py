"""The system calls that Python lacks: namespaces, mounts, prctl, capabilities, Landlock. Linux only.

Numbers are from the kernel's headers: linux/{sched,mount,prctl,capability,landlock}.h.
The raw system call numbers used (mount_setattr and Landlock's three) are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_NOSUID, MS_NODEV = 0x2, 0x4
MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x1000, 0x2000, 0x4000, 0x40000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 0x1, 0x2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_MODE_FILTER = 2

_SYS_MOUNT_SETATTR = 442
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_ADD_RULE, _SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

LANDLOCK_WRITE_FILE, LANDLOCK_READ_FILE, LANDLOCK_READ_DIR = 1 << 1, 1 << 2, 1 << 3
_LANDLOCK_VERSION, _LANDLOCK_PATH_BENEATH = 1, 1
# Rights by the ABI that brought them; what is handled and not allowed by a rule is denied.
_LANDLOCK_FS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_LANDLOCK_NET = {4: 0b11}  # bind and connect over TCP
_LANDLOCK_SCOPED = {6: 0b11}  # abstract sockets and signals outside of the domain


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: object) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def unshare(flags: int) -> None:
    """Moves this process into new namespaces (a new pid namespace: its future children)."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mounts something, binds it to a second place, or moves it; see the manual page of the same name."""
    arguments = [text.encode() or None for text in (source, target, kind)]
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None), f"mount {target}")


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def set_mount_attributes(path: str, attributes: int, *, recursive: bool) -> None:
    """mount_setattr(2), Linux 5.12: adds attributes to a mount, `recursive` to all mounts below it too."""
    wanted = _MountAttributes(attr_set=attributes)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    what = f"mount_setattr {path}"
    _syscall(what, _SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, ctypes.byref(wanted), size)


def _prctl(what: str, option: int, *arguments: int) -> None:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    _check(_libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)), what)


def no_new_privileges() -> None:
    """From here on no exec gives more rights; a condition of unprivileged seccomp and Landlock."""
    _prctl("no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)


def not_dumpable() -> None:
    """No core dumps, and no process of the same user may trace this one or open its memory."""
    _prctl("dumpable", _PR_SET_DUMPABLE, 0)


def die_with_parent(signal_number: int) -> None:
    """The kernel sends this signal when the parent ends."""
    _prctl("pdeathsig", _PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, not of init."""
    _prctl("subreaper", _PR_SET_CHILD_SUBREAPER, 1)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def drop_capabilities() -> None:
    """Gives up every capability, whatever the user id."""
    header = _CapabilityHeader(0x20080522, 0)  # version 3: two groups of three 32-bit sets
    _check(_libc.capset(ctypes.byref(header), (ctypes.c_uint32 * 6)()), "capset")


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


class SeccompFilter:
    """A BPF program, ready to be put on a process with one system call."""

    def __init__(self, program: bytes) -> None:
        self._bytes = program  # eight bytes an instruction; must outlive the structure that points to it
        self._structure = _FilterProgram(len(program) // 8, program)

    def install(self) -> None:
        """For this process and all it starts, for good."""
        address = ctypes.addressof(self._structure)
        _prctl("seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, address)


class _LandlockRuleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("fs", "net", "scoped")]


class _LandlockPath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32)]


def landlock(rules: list[tuple[str, int]]) -> None:
    """Restricts this process to what the rules allow: rights (LANDLOCK_*) below each path. Also no TCP from ABI 4 on.

    Raises:
        OSError: the kernel has no Landlock, or a path is missing.
    """
    abi = _syscall("landlock", _SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    handled = [
        sum(bits for version, bits in table.items() if version <= abi)
        for table in (_LANDLOCK_FS, _LANDLOCK_NET, _LANDLOCK_SCOPED)
    ]
    ruleset = _LandlockRuleset(*handled)
    size = ctypes.c_size_t(8 * (1 + (abi >= 4) + (abi >= 6)))  # the structure grew with the ABI
    fd = _syscall("landlock", _SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    try:
        for path, rights in rules:
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = _LandlockPath(rights, parent)
                what = f"landlock {path}"
                _syscall(what, _SYS_LANDLOCK_ADD_RULE, fd, _LANDLOCK_PATH_BENEATH, ctypes.byref(rule), 0)
            finally:
                os.close(parent)
        _syscall("landlock", _SYS_LANDLOCK_RESTRICT_SELF, fd, 0)
    finally:
        os.close(fd)
