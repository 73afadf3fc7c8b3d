"""The package's files, read and not imported -> who imports whom, who uses a library's private names."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = "lmtemplate"
ROOT = Path(__file__).parents[1]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, as in `data.shards`; a package's `__init__` has the package's name."""
    folder = root / PACKAGE
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All of a file's tree, from the top."""
    return tuple(ast.walk(tree(path)))


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of what a file imports, functions' own imports included."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def packages(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    return {name.partition(".")[0] for name in imports(path)}


def own_imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Those of the known modules that a file imports."""
    names = set()
    for name in imports(path):
        first, _, module = name.partition(".")
        if first == PACKAGE:
            while module and module not in known:
                module = module.rpartition(".")[0]
            names.add(module)
    return names - {""}


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore; a lone one is a name for nothing."""
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")


def private_names(path: Path) -> set[str]:
    """Private names of libraries that a file uses: attributes, imports, keys in quotes.

    An attribute of `self`, `cls` or a module of the package is its own. `os._exit` is documented.
    """
    own = {PACKAGE, "self", "cls"}
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{PACKAGE}."):
            own |= {alias.asname or alias.name for alias in node.names}
    found = set()
    for node in nodes(path):
        match node:
            case ast.Attribute(value=ast.Name(id=owner)) if owner in own:
                continue
            case ast.Attribute(attr=name) | ast.Constant(value=str(name)):
                found |= {name} if name.isidentifier() and is_private(name) else set()
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] != PACKAGE:
                parts = [*module.split("."), *(alias.name for alias in node.names)]
                found |= {part for part in parts if is_private(part)}
            case ast.Import():
                parts = [part for alias in node.names for part in alias.name.split(".")]
                found |= {part for part in parts if is_private(part)}
    return found - {"_exit"}


def defined(path: Path) -> set[str]:
    """Names that a file defines at its top level, imports left out."""
    names: set[str] = set()
    for node in tree(path).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {
                    one.id
                    for target in targets
                    for one in ast.walk(target)
                    if isinstance(one, ast.Name)
                }
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("__")}
