"""Which programs could not touch the tests that run beside them, whatever they do.

`--strict` aside, a program and its tests share one interpreter, as in every other harness, and there a program can read
the tests' constants, answer with objects that are equal to everything, replace `abs`, or report its own verdict. So a
program counts as *plain* only if everything in it is known to be of no use for that: the syntax, the builtins, the
modules and the names taken from them are lists of what is allowed; it defines no class, stores no attribute, and takes
no name that the tests use. Most solutions are plain. The pass of any other is confirmed in separate processes.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
from collections.abc import Set

_SYNTAX = """
    Module Expr Load Store Del Pass Break Continue
    FunctionDef Lambda arguments arg Return Yield YieldFrom Nonlocal Global
    Assign AugAssign AnnAssign NamedExpr Delete Name Starred
    For While If IfExp Raise Try ExceptHandler Assert
    Import ImportFrom alias Attribute Subscript Slice Call keyword
    Constant JoinedStr FormattedValue List Tuple Set Dict
    ListComp SetComp DictComp GeneratorExp comprehension
    BoolOp And Or BinOp Add Sub Mult MatMult Div Mod Pow LShift RShift BitOr BitXor BitAnd FloorDiv
    UnaryOp Invert Not UAdd USub Compare Eq NotEq Lt LtE Gt GtE Is IsNot In NotIn
"""
_NODES = frozenset(getattr(ast, name) for name in _SYNTAX.split())
_ALL_BUILTINS = frozenset(dir(builtins))
_HARMLESS = """
    abs all any ascii bin bool bytearray bytes callable chr complex dict divmod enumerate filter float frozenset hasattr
    hash hex id int isinstance issubclass iter len list map max min next oct ord pow print range repr reversed round set
    slice sorted str sum tuple zip NotImplemented Ellipsis
"""
_BUILTINS = frozenset(_HARMLESS.split()) | {
    name
    for name in _ALL_BUILTINS
    if isinstance(getattr(builtins, name), type) and issubclass(getattr(builtins, name), BaseException)
}
_DENIED = _ALL_BUILTINS - _BUILTINS
# "*": every public name of the module, which is written in C or computes only. A name that is not here may be harmless
# too; but numbers.ABCMeta makes classes, functools.wraps sets attributes, typing.get_type_hints evaluates text.
_MODULES = {
    "bisect": "*",
    "cmath": "*",
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "copy": "copy deepcopy",
    "datetime": "MAXYEAR MINYEAR date datetime time timedelta timezone",
    "decimal": "Decimal ROUND_CEILING ROUND_DOWN ROUND_FLOOR ROUND_HALF_DOWN ROUND_HALF_EVEN ROUND_HALF_UP ROUND_UP",
    "fractions": "Fraction",
    "functools": "cache cmp_to_key lru_cache partial reduce",
    "hashlib": "md5 sha1 sha224 sha256 sha384 sha512",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "itertools": "*",
    "math": "*",
    "operator": "add and_ concat contains eq floordiv ge gt index inv itemgetter le lshift lt matmul mod mul ne neg"
    " not_ or_ pos pow rshift sub truediv truth xor",
    "random": "betavariate choice choices gauss randint random randrange sample seed shuffle triangular uniform",
    "re": "A ASCII DOTALL I IGNORECASE M MULTILINE S VERBOSE X compile escape findall finditer fullmatch match search"
    " split sub subn",
    "statistics": "fmean geometric_mean harmonic_mean mean median median_high median_low mode multimode pstdev"
    " pvariance quantiles stdev variance",
    "string": "ascii_letters ascii_lowercase ascii_uppercase capwords digits hexdigits octdigits printable punctuation"
    " whitespace",
    "time": "monotonic perf_counter sleep time",
    "typing": "AbstractSet Any Callable Collection Counter DefaultDict Deque Dict Final FrozenSet Generator Hashable"
    " Iterable Iterator List Literal Mapping MutableMapping MutableSequence NoReturn Optional Sequence Set Sized Text"
    " Tuple TypeVar Union",
    "unicodedata": "*",
}
MODULES = {
    name: frozenset(
        names.split() if names != "*" else (one for one in dir(importlib.import_module(name)) if one[0] != "_")
    )
    for name, names in _MODULES.items()
}
_STAR_IMPORTS = frozenset(name for name, names in _MODULES.items() if names == "*")
# Attributes of any object: frames behind generators and tracebacks, and text that names attributes.
_ATTRIBUTE_PREFIXES = ("_", "gi_", "cr_", "ag_", "tb_", "f_", "co_")
_LONGEST = 50_000  # characters; a reader of unread programs takes no more
_ATTRIBUTES = frozenset(["format", "format_map"])


@functools.lru_cache(maxsize=4096)  # samples of one task are often the same
def could_not_touch(program: str, used_by_tests: frozenset[str]) -> bool:
    """Whether a program that passed is plain, by `is_plain`; false for what can not be read, or is too long to be."""
    if len(program) > _LONGEST:
        return False
    try:
        return is_plain(ast.parse(program), used_by_tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def is_plain(tree: ast.AST, used_by_tests: Set[str]) -> bool:
    """Whether a program can not reach tests that run after it in the same namespace.

    Args:
        tree: the program.
        used_by_tests: names that the tests read from the common namespace.
    """
    modules: dict[str, str] = {}  # name in the program -> module
    nodes = list(ast.walk(tree))
    for node in nodes:
        if type(node) not in _NODES:
            return False
        if isinstance(node, ast.Import | ast.ImportFrom) and not _is_harmless_import(node, modules, used_by_tests):
            return False
    harmless: set[int] = set()  # of names: ids of nodes whose use was looked at where they stand
    for node in nodes:
        if isinstance(node, ast.Attribute):
            if not isinstance(node.ctx, ast.Load):
                return False
            module = modules.get(node.value.id) if isinstance(node.value, ast.Name) else None
            if module is None:
                if node.attr.startswith(_ATTRIBUTE_PREFIXES) or node.attr in _ATTRIBUTES:
                    return False
            elif node.attr not in MODULES[module]:
                return False
            harmless.add(id(node.value))
        elif isinstance(node, ast.Compare):
            # `type(x) == int`; elsewhere a type can make classes
            for side in (node.left, *node.comparators):
                if isinstance(side, ast.Call) and _is_type_of_one(side):
                    harmless.add(id(side.func))
        elif isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                if node.id in modules or _is_taken(node.id, used_by_tests):
                    return False
            elif id(node) in harmless and (node.id in modules or node.id == "type"):
                continue
            elif node.id in modules or node.id.startswith("__") or node.id in _DENIED:
                return False
        elif isinstance(node, ast.FunctionDef | ast.ExceptHandler | ast.arg):
            name = node.arg if isinstance(node, ast.arg) else node.name
            if name is not None and (name in modules or _is_taken(name, used_by_tests)):
                return False
        elif isinstance(node, ast.Nonlocal | ast.Global) and any(_is_taken(one, used_by_tests) for one in node.names):
            return False
    return True


def _is_type_of_one(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "type" and len(call.args) == 1 and not call.keywords


def _is_taken(name: str, used_by_tests: Set[str]) -> bool:
    return name in _ALL_BUILTINS or name in used_by_tests or name.startswith("__")


def _is_harmless_import(node: ast.Import | ast.ImportFrom, modules: dict[str, str], used_by_tests: Set[str]) -> bool:
    """Checks one statement and notes the names that it gives to modules."""
    for name in node.names:
        bound = name.asname or name.name
        if isinstance(node, ast.Import):
            # `import math` gives the tests the very module that they mean
            if name.name not in MODULES or (bound != name.name and _is_taken(bound, used_by_tests)):
                return False
            if modules.setdefault(bound, name.name) != name.name:
                return False
        elif node.level or node.module not in MODULES:
            return False
        elif name.name == "*":
            if node.module not in _STAR_IMPORTS:
                return False
        elif name.name not in MODULES[node.module] or (bound != name.name and _is_taken(bound, used_by_tests)):
            return False
    return True


def names_used(tests: str) -> frozenset[str]:
    """The names that tests read and do not bind themselves.

    Raises:
        SyntaxError: the tests are no Python.
    """
    loaded: set[str] = set()
    stored: set[str] = set()
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else stored).add(node.id)
        elif isinstance(node, ast.arg):
            stored.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            stored.add(node.name)
        elif isinstance(node, ast.alias):
            stored.add(node.asname or node.name.partition(".")[0])
    return frozenset(loaded - stored - _ALL_BUILTINS)
