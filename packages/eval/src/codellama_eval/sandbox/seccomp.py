"""The system call filter: a list of what computing needs; everything else fails with EPERM. Compiled by libseccomp."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import tempfile
from typing import Any

# No process, no signal to anybody, no socket, no tracing, no mount, no write to a file system, no io_uring: by absence.
_ALLOWED = """
access faccessat faccessat2 stat lstat fstat newfstatat statx readlink readlinkat getcwd chdir fchdir
getdents getdents64
read readv pread64 preadv write writev lseek close close_range dup dup2 dup3 pipe pipe2 fadvise64
mmap munmap mprotect mremap madvise brk membarrier
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
futex set_robust_list get_robust_list rseq set_tid_address arch_prctl restart_syscall
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigsuspend rt_sigtimedwait sigaltstack
getitimer setitimer alarm pause
exit exit_group wait4 waitid
clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage sysinfo uname
getpid gettid getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups
getrandom sched_yield sched_getaffinity sched_getparam sched_getscheduler getpriority umask capget
"""
_CLONE_THREAD = 0x10000
_TCGETS, _FIOCLEX = 0x5401, 0x5451
# fcntl F_SETOWN and F_SETSIG would send signals, F_SETPIPE_SZ takes memory that no limit counts.
_FCNTL = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL)
_OPEN_TO_WRITE = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | (getattr(os, "O_TMPFILE", 0) & ~getattr(os, "O_DIRECTORY", 0))


@functools.cache  # finding the library takes longer than compiling
def compile_filter() -> bytes:
    """The filter as BPF, for this machine's architecture.

    Raises:
        OSError: libseccomp is not installed, or does not know this machine.
    """
    try:
        import pyseccomp  # noqa: PLC0415  (looks for the system's library when it is imported)
    except (ImportError, RuntimeError):
        raise OSError(errno.ENOENT, "libseccomp is not installed (Debian, Ubuntu: apt install libseccomp2)") from None
    arg, equal, masked = pyseccomp.Arg, pyseccomp.EQ, pyseccomp.MASKED_EQ
    rules: list[tuple[str, tuple[Any, ...]]] = [(name, ()) for name in _ALLOWED.split()]
    rules += [
        ("open", (arg(1, masked, _OPEN_TO_WRITE, 0),)),
        ("openat", (arg(2, masked, _OPEN_TO_WRITE, 0),)),
        ("clone", (arg(0, masked, _CLONE_THREAD, _CLONE_THREAD),)),
        ("prlimit64", (arg(0, equal, 0),)),
        ("getrlimit", ()),
        ("setrlimit", ()),
    ]
    rules += [("fcntl", (arg(1, equal, command),)) for command in _FCNTL]
    rules += [("ioctl", (arg(1, equal, request),)) for request in (_TCGETS, _FIOCLEX)]
    program = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    with contextlib.suppress(OSError):  # libseccomp 2.5
        # a tree, not a list: when a process takes the filter on, the kernel tries it with every system call there is
        program.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    for name, arguments in rules:
        try:
            number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)
        except (ValueError, OSError):
            continue
        if number is None or number < 0:
            continue  # not a system call of this architecture, or newer than the library
        program.add_rule(pyseccomp.ALLOW, name, *arguments)
    # Its arguments are out of the filter's sight; glibc takes ENOSYS as "use clone", which is in sight.
    program.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()
