"""Which code made an output: a hash of a stage's module and of every talker module it imports.

The rules put it among their parameters, so that an edit reruns exactly the stages it affects;
comments, docstrings and layout do not count. Sources are parsed, never imported.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def code_of(module: str, package: Path = PACKAGE) -> str:
    """Return 12 hex digits that change with the code of `module` and of what it imports.

    A data file counts with the module that lies beside it and names it.

    Args:
        module: dotted name of a module, such as "talker.track".
        package: folder of the top-level package.
    """
    parts = []
    for source in (_source(name, package) for name in closure(module, package)):
        code, _, strings = _parse(source.read_text())
        parts.append(code.encode())
        parts += [file.read_bytes() for file in _data(source.parent) if file.name in strings]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(digests).hexdigest()[:12]


def closure(module: str, package: Path = PACKAGE) -> list[str]:
    """Return, sorted, `module`, the modules of the package that it imports, and so on.

    Imports inside functions count, and so does the `__init__` of every package on the way.

    Raises:
        ModuleNotFoundError: the package has no such module.
    """
    if not _source(module, package).exists():
        raise ModuleNotFoundError(f"no module {module} in {package.parent}")
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        source = _source(name, package)
        if name.partition(".")[0] == package.name and name not in found and source.exists():
            found.add(name)
            waiting += [name.rpartition(".")[0], *_parse(source.read_text())[1]]
    return sorted(found)


def _source(name: str, package: Path) -> Path:
    path = package.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _data(folder: Path) -> list[Path]:
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
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_text(node: ast.AST) -> bool:
    """A string that stands alone: the docstring of a module, class, function or option."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
