"""What a zygote takes away from itself, before any unread program runs in its children.

Layers, each used where the system allows it (`LAYERS` says in a word what each is for). Where one can not be had, its
reason is kept and the others stay; `workers` decides whether what is left is enough.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

LAYERS = {
    "user": "an identity without rights: a user namespace, or the user nobody, and no capabilities",
    "mount": "a private root, read-only: Python's library and what it links to, no data, no /proc, no /tmp",
    "pid": "sees and signals no process but its own; all end with the namespace",
    "net": "no network, not even a loopback that is up",
    "ipc": "no shared memory, semaphores or message queues of others",
    "uts": "a host name of its own",
    "landlock": "reads Python's library only, writes nowhere",
    "seccomp": "only the system calls that computing needs: no process, socket, signal or write to a file system",
    "limits": "memory, processor time, file size, descriptors, processes",
}
NOBODY = 65534
MEMORY_BYTES = 2 << 30
OPEN_FILES = 64
PROCESSES = 64
_NAMESPACES = ("mount", "pid", "net", "ipc", "uts")
_FOREIGN_FOLDERS = ("site-packages", "dist-packages")  # may hold data sets, with the answers
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_ROOT_OPTIONS = "size=1m,nr_inodes=4k,mode=755"


class LayerError(OSError):
    """A layer that failed half way, so that the process is of no use: start again without it."""

    def __init__(self, layer: str, reason: object) -> None:
        super().__init__(f"{layer}: {reason}")
        self.layer = layer
        self.reason = str(reason)


def isolate(
    without: frozenset[str], packages: list[str], memory_bytes: int, map_users: Callable[[], bool]
) -> dict[str, str | None]:
    """Isolates this process, which comes back as another one where there is a pid namespace; seccomp comes later.

    Args:
        without: layers to leave out.
        packages: folders and files of importable packages that stay readable beside the standard library.
        memory_bytes: address space of each process.
        map_users: asks the scorer's side to write this process's user and group maps; false if it could not.

    Returns:
        For each layer but seccomp None where it is on, else why it is not.

    Raises:
        LayerError: start again without this layer.
    """
    state: dict[str, str | None] = {}
    if sys.platform != "linux":
        state.update(dict.fromkeys(("user", *_NAMESPACES, "landlock"), f"{sys.platform} has none"))
        _set_limits(memory_bytes, counted_alone=False)
        return {**state, "limits": None}
    from codellama_eval.sandbox import linux  # noqa: PLC0415

    with contextlib.suppress(OSError):  # where memory runs out after all, the scorer is not the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    own_users = False
    if "user" in without:
        state["user"] = "left out"
    else:
        try:
            linux.unshare(linux.CLONE_NEWUSER)
        except OSError as error:
            state["user"] = error.strerror
        else:
            if not map_users():
                raise LayerError("user", "the user map can not be written")
            own_users = True
            state["user"] = None
    flags = {
        "mount": linux.CLONE_NEWNS,
        "pid": linux.CLONE_NEWPID,
        "net": linux.CLONE_NEWNET,
        "ipc": linux.CLONE_NEWIPC,
        "uts": linux.CLONE_NEWUTS,
    }
    for layer in _NAMESPACES:
        try:
            if layer in without:
                state[layer] = "left out"
            else:
                linux.unshare(flags[layer])
                state[layer] = None
        except OSError as error:
            state[layer] = error.strerror
    if state["pid"] is None:
        _become_first_process()
    readable = [*_python_library(), *packages]
    if state["mount"] is None:
        try:
            _private_root(readable)
        except OSError as error:
            raise LayerError("mount", error) from None
        readable = ["/"]
    if "user" not in without:
        state["user"] = _drop_rights(own_users, state["user"])
    linux.no_new_privileges()
    if "landlock" in without:
        state["landlock"] = "left out"
    else:
        try:
            _landlock(readable)
            state["landlock"] = None
        except OSError as error:
            state["landlock"] = str(error)
    linux.not_dumpable()
    if state["pid"] is None:
        linux.die_with_parent(signal.SIGKILL)  # not before: a change of identity clears it
    else:
        linux.adopt_orphans()
    _set_limits(memory_bytes, counted_alone=own_users or os.geteuid() == NOBODY)
    state["limits"] = None
    return state


def _become_first_process() -> None:
    """Forks into the new pid namespace and waits outside of it until the child, its process 1, ends."""
    pid = os.fork()
    if pid:
        os.closerange(0, OPEN_FILES)  # the connection is the child's alone, or its end would go unseen
        os.waitpid(pid, 0)
        os._exit(0)


def _python_library() -> list[str]:
    """Folders and files that importing from the standard library reads; the folders of other packages are left out."""
    found: list[str] = []
    for folder in dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")):
        found += _children(Path(folder))
    for name in (*_LIBRARIES, f"{sys.base_exec_prefix}/lib"):
        path = Path(name)
        found += _children(path) if any(path.glob("python3*")) else [name]
    found += _DEVICES
    return [path for path in dict.fromkeys(found) if Path(path).exists()]


def _children(folder: Path) -> Iterator[str]:
    """What is in a folder except other people's packages, for Landlock and mounts, which know no exceptions."""
    for path in folder.iterdir():
        if path.name not in _FOREIGN_FOLDERS and not (path.is_dir() and path.name.startswith("python3")):
            yield str(path)


def _private_root(readable: list[str]) -> None:
    """Makes a read-only tree of nothing but `readable` the root. The old one is out of reach."""
    from codellama_eval.sandbox import linux  # noqa: PLC0415

    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
    sources = [os.path.realpath(path) for path in readable]
    places = ("/tmp", "/mnt", "/media", "/srv", "/opt", "/proc")
    base = next(place for place in places if Path(place).is_dir() and not any(map(_inside(place), sources)))
    linux.mount("tmpfs", base, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, _ROOT_OPTIONS)
    for path, source in zip(readable, sources, strict=True):
        target = Path(base + source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            if Path(source).is_dir():
                target.mkdir()
            else:
                target.touch()
            linux.mount(source, str(target), "", linux.MS_BIND | linux.MS_REC)
        link = Path(base + path)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    os.chdir(base)
    linux.mount(base, "/", "", linux.MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    linux.set_mount_attributes("/", linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID, recursive=True)


def _inside(folder: str) -> Callable[[str], bool]:
    return lambda path: path == folder or path.startswith(f"{folder}/")


def _drop_rights(own_users: bool, reason: str | None) -> str | None:
    """Becomes nobody where that is possible, and gives up all capabilities."""
    from codellama_eval.sandbox import linux  # noqa: PLC0415

    if os.geteuid() == 0:
        if own_users or _nobody_can_read():
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            reason = None
        else:
            reason = f"nobody can not be had here, or can not read {os.__file__}; without capabilities all the same"
    linux.drop_capabilities()
    return reason


def _nobody_can_read() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.close(os.open(os.__file__, os.O_RDONLY))
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _landlock(readable: list[str]) -> None:
    from codellama_eval.sandbox import linux  # noqa: PLC0415

    read = linux.LANDLOCK_READ_FILE
    rules = [(path, read | linux.LANDLOCK_READ_DIR if Path(path).is_dir() else read) for path in readable]
    # importlib lists the folders that it looks into; names, not contents
    listed = {str(Path(path).parent) for path in readable if path != "/"}
    rules += [(path, linux.LANDLOCK_READ_DIR) for path in sorted(listed)]
    rules.append(("/dev/null", read | linux.LANDLOCK_WRITE_FILE))
    linux.landlock(rules)


def _set_limits(memory_bytes: int, *, counted_alone: bool) -> None:
    """Limits of this process and its children. Without a user of its own, the user's other processes count too."""
    wanted = {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    if counted_alone:
        wanted["RLIMIT_NPROC"] = PROCESSES
    for name, value in wanted.items():
        if hasattr(resource, name):
            hard = resource.getrlimit(getattr(resource, name))[1]
            limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
            with contextlib.suppress(ValueError, OSError):  # macOS refuses some
                resource.setrlimit(getattr(resource, name), (limit, limit))


def end_with_parent() -> None:
    """For a forked process where no pid namespace sees to that."""
    if sys.platform == "linux":
        from codellama_eval.sandbox import linux  # noqa: PLC0415

        linux.die_with_parent(signal.SIGKILL)


def limit_child(processor_seconds: int) -> None:
    """For a forked process: the kernel kills it where the zygote's own clock is late."""
    resource.setrlimit(resource.RLIMIT_CPU, (processor_seconds, processor_seconds))


def silence() -> None:
    """Standard input, output and error become nothing at all."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
