"""The package's files -> how large the house is: lines, what `fit` loads, names used twice.

    make bench BENCH=house
    make bench BENCH=house ARGS=path/to/another/checkout   # what it was there -> what it is here

Nothing is trained. Lines are all lines of a file, comments and docstrings included.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from tests.source import PACKAGE, ROOT, defined, modules, own_imports, private_names, tree

CHANGED = (  # what a researcher changes
    "models models.* loss metrics optimizers muon schedules module data.sampler data.datamodule "
    "data.shards generate"
)
LOADED = f"""
import importlib, sys
importlib.import_module(sys.argv[1])
print(*(name for name in sys.modules if name.partition(".")[0] == {PACKAGE!r}))
"""


def lines(paths: Iterator[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def long_functions(known: dict[str, Path]) -> Iterator[str]:
    """Those of more than 50 lines."""
    for module, path in known.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 50:
                    yield f"{module}.{node.name}: {length}"


def imported(root: Path, entry: str) -> set[str]:
    """Modules of the package in memory once the entry is imported, in a process of its own."""
    words = [sys.executable, "-c", LOADED, f"{PACKAGE}.{entry}"]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    shown = subprocess.run(words, cwd=root, env=environment, capture_output=True, check=True)
    return {name.partition(".")[2] for name in shown.stdout.decode().split()}


class Graph:
    """Who imports whom, read from the files.

    Args:
        known: dotted name -> file, for every module.
    """

    def __init__(self, known: dict[str, Path]) -> None:
        self.uses = {name: own_imports(path, known) - {name} for name, path in known.items()}
        for name, others in self.uses.items():  # importing a.b imports a
            parents = {other.rpartition(".")[0] for other in others} - {"", name}
            others |= {parent for parent in parents if not name.startswith(f"{parent}.")}

    def reached(self, entry: str) -> set[str]:
        """The entry, and all that it imports, however indirectly."""
        found, left = {""}, [entry]
        while left:
            if (name := left.pop()) not in found:
                found.add(name)
                left += self.uses[name]
        return found

    def chain(self, entry: str) -> list[str]:
        """The longest chain of modules that import each other, from the entry down."""
        longest: dict[str, list[str]] = {}

        def below(name: str, above: tuple[str, ...]) -> list[str]:
            if name not in longest:
                others = self.uses[name] - {*above, name}
                chains = [below(other, (*above, name)) for other in others]
                longest[name] = [name, *max(chains, key=len, default=[])]
            return longest[name]

        return below(entry, ())


def figures(root: Path) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Figure by figure its number, and for some of them what was counted."""
    known = modules(root)
    entry = "fit" if "fit" in known else "cli"  # where it was before fit.py
    study = {name for name in known if name.partition(".")[0] == "study"}
    changed = {name for name in known if any(fnmatch(name, part) for part in CHANGED.split())}
    graph = Graph(known)
    in_memory, read = imported(root, entry), graph.reached(entry)
    twice = Counter(name for path in known.values() for name in defined(path))
    counted = {
        "modules in the longest chain of imports": graph.chain(entry),
        "names defined at top level in two or more modules": sorted(
            name for name, times in twice.items() if times > 1
        ),
        "private names of libraries used": sorted(
            f"{module}: {name}" for module, path in known.items() for name in private_names(path)
        ),
        "files of more than 300 lines": [
            f"{module}: {length}"
            for module, path in known.items()
            if (length := lines(iter([path]))) > 300
        ],
        "functions of more than 50 lines": list(long_functions(known)),
    }

    def size(names: set[str]) -> int:
        return lines(known[name] for name in names)

    numbers = {
        "lines of core": size(known.keys() - study),
        "lines of core that a researcher changes": size(changed),
        "lines of study": size(study),
        "modules that fit imports": len(in_memory),
        "lines that fit imports": size(in_memory),
        "modules that fit may import, by reading": len(read),
        "lines that fit may import, by reading": size(read),
    }
    return {**numbers, **{name: len(found) for name, found in counted.items()}}, counted


def main(words: list[str]) -> None:
    now, counted = figures(ROOT)
    before = figures(Path(words[0]).resolve())[0] if words else {}
    for name, number in now.items():
        print(f"{name:<50}{f'{before[name]:>7,} ->' if before else ''}{number:>7,}")
    for name, found in counted.items():
        print(f"\n{name}:\n  " + "\n  ".join(found))


if __name__ == "__main__":
    main(sys.argv[1:])
