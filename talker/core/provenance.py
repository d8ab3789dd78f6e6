"""Hash the code that produces an output: a stage's module and all talker modules it imports.

The hash is a parameter of the workflow's rules, so an edit reruns exactly the stages whose code it
changes. Comments, docstrings and formatting do not change the hash. Sources are parsed, never
imported.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
"""Folder of the package `talker`."""


EMPTY = ast.dump(ast.Module([], []))
"""Code of a module without statements, as `_parse` returns it."""


def code_of(module: str, package: Path = PACKAGE) -> str:
    """Return 12 hexadecimal digits that change with the code of `module` and of its imports.

    A data file is included if a module in the same folder contains its name as a string.

    Args:
        module: dotted name of a module, such as "talker.track".
        package: folder of the top-level package.
    """
    parts = []
    for source in (_source(name, package) for name in closure(module, package)):
        code, _, strings = _parse(source.read_text(encoding="utf-8"))
        parts.append(code.encode())
        parts += [file.read_bytes() for file in _data(source.parent) if file.name in strings]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(digests).hexdigest()[:12]


def closure(module: str, package: Path = PACKAGE) -> list[str]:
    """Return the sorted names of `module` and all modules of the package that it needs.

    This includes imports inside functions, and the `__init__` of every package that contains an
    imported module, unless this `__init__` is only a docstring.

    Raises:
        ModuleNotFoundError: the package has no such module.
    """
    if not _source(module, package).exists():
        raise ModuleNotFoundError(f"{package.parent} has no module {module}")
    modules: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        source = _source(name, package)
        if name.partition(".")[0] == package.name and name not in modules and source.exists():
            modules.add(name)
            pending += [name.rpartition(".")[0], *_parse(source.read_text(encoding="utf-8"))[1]]
    return sorted(name for name in modules if name == module or _has_code(_source(name, package)))


def _has_code(source: Path) -> bool:
    """Return whether a module contains any statement other than docstrings."""
    return _parse(source.read_text(encoding="utf-8"))[0] != EMPTY


def _source(name: str, package: Path) -> Path:
    """Return the file that holds the code of a module or package."""
    path = package.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _data(folder: Path) -> list[Path]:
    """Return the files of a folder that are not Python sources."""
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix != ".py")


@functools.cache
def _parse(text: str) -> tuple[str, frozenset[str], frozenset[str]]:
    """Return a module's code without comments and docstrings, its imports and its strings."""
    tree = ast.parse(text)
    imports, strings = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            strings.add(str(node.value))
        else:
            imports.update(_imported(node))
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list):
                    setattr(node, name, [line for line in block if not _is_text(line)])
    return ast.dump(tree), frozenset(imports), frozenset(strings)


def _imported(node: ast.AST) -> Iterator[str]:
    """Yield the dotted names in a statement that are, or may be, imported modules."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_text(node: ast.AST) -> bool:
    """Return whether a statement is a string: the docstring of a module, function or option."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
