"""The source itself: who imports whom, how long things are, and what is never used."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "lmtemplate"
ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / PACKAGE).rglob("*.py"))

# A module imports only from rows below its own; the floor imports nothing of ours.
ROWS: list[tuple[float, str]] = [
    (-1, "errors hardware streams data.grammar"),
    (-0.5, "data.shards muon"),
    (0, "models.base models.layers data.corpus data.tokenizer data.sampler"),
    (0, "metrics optimizers schedules run redact"),
    (0.5, "data.train_tokenizer data.shard_writer record crash"),
    (1, "models.gpt models.gpt2 loss data.prepare data.datamodule"),
    (2, "module checkpoint length"),
    (2.2, "resume"),
    (2.5, "restore"),
    (3, "generate"),
    (5.3, "mistakes"),
    (5.4, "flags"),
    (5.5, "parsing"),
    (5.7, "trainer"),
    (6, "__main__ cli evaluate"),
]
ROW_OF = {name: row for row, names in ROWS for name in names.split()}
ROW_OF_ROOM = {"models": 1, "study": 4, "export": 4, "callbacks": 5}
MAY_USE_EACH_OTHER = ("study", "callbacks")

LIGHTNING = ("module", "data.datamodule", "parsing", "trainer", "cli", "evaluate", "callbacks")
JSONARGPARSE = ("parsing", "flags")


def dotted(path: Path) -> str:
    """lmtemplate/data/shards.py -> data.shards; a package's __init__ -> the package."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(PACKAGE, *name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a file imports, functions' own imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, without the package's name."""
    names = set()
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == PACKAGE:
            parts = rest.split(".")
            known = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            names.add(next((part for part in known if is_module(part)), ""))
    return names - {""}


def row(name: str) -> float:
    if name in ROW_OF:
        return ROW_OF[name]
    return ROW_OF_ROOM[name.split(".")[0]]


MODULES = [path for path in SOURCES if dotted(path) not in ("", "data")]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_has_a_row(path: Path) -> None:
    assert dotted(path) in ROW_OF or dotted(path).split(".")[0] in ROW_OF_ROOM


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_imports_only_rows_below_it(path: Path) -> None:
    name = dotted(path)
    room = name.split(".")[0]
    for other in own_imports(path):
        same_room = other.split(".")[0] == room
        gathers = path.name == "__init__.py"
        if same_room and (room in MAY_USE_EACH_OTHER or gathers):
            continue
        assert row(other) < row(name), f"{name} imports {other}"


@pytest.mark.parametrize("room", MAY_USE_EACH_OTHER)
def test_rooms_import_each_other_without_circles(room: str) -> None:
    files = (ROOT / PACKAGE / room).glob("[a-z]*.py")
    uses = {dotted(path): own_imports(path) for path in files}
    while uses:
        free = [name for name, others in uses.items() if not others & uses.keys()]
        assert free, f"a circle among {sorted(uses)}"
        for name in free:
            del uses[name]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or PACKAGE)
def test_models_and_data_never_meet(path: Path) -> None:
    room = dotted(path).split(".")[0]
    foreign = {"models": "data", "data": "models"}.get(room)
    assert foreign not in {name.split(".")[0] for name in own_imports(path)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or PACKAGE)
def test_lightning_and_jsonargparse_stay_where_they_belong(path: Path) -> None:
    name = dotted(path)
    packages = {imported.split(".")[0] for imported in imports(path)}
    if not (name in LIGHTNING or name.startswith("callbacks.")):
        assert not packages & {"lightning", "pytorch_lightning"}
    if name not in JSONARGPARSE:
        assert "jsonargparse" not in packages


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in memory after importing these, in a process of their own."""
    code = (
        f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    foreign = loaded_by(PACKAGE) - loaded_by("this") - {PACKAGE}
    assert not {name for name in foreign if not name.startswith("_")} - set(sys.stdlib_module_names)


def test_prepare_and_generate_do_not_import_lightning() -> None:
    loaded = loaded_by(f"{PACKAGE}.data.prepare", f"{PACKAGE}.generate")
    assert not loaded & {"lightning", "lightning_fabric", "tensorboard", "jsonargparse"}


def test_every_module_has_its_test_at_the_same_path() -> None:
    missing = []
    for path in SOURCES:
        if path.name == "__init__.py":
            continue
        relative = path.relative_to(ROOT / PACKAGE)
        test = f"test_{relative.stem.strip('_')}.py"
        if not (ROOT / "tests" / relative.parent / test).is_file():
            missing.append(str(relative))
    assert missing == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or PACKAGE)
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or PACKAGE)
def test_no_function_is_longer_than_60_lines(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_a_module_begins_by_saying_what_it_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(ast.get_docstring(ast.parse(text), clean=True) or "") > 20


# What runs code from data, or hides where weights are loaded. `pickle` may be imported for the
# name of its error.
FORBIDDEN = {
    ("", "eval"),
    ("", "exec"),
    ("", "compile"),
    ("", "__import__"),
    ("os", "system"),
    ("os", "popen"),
    ("pickle", "load"),
    ("pickle", "loads"),
    ("pickle", "Unpickler"),
    ("yaml", "load"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
    ("np", "load"),
    ("numpy", "load"),
    ("joblib", "load"),
    ("marshal", "loads"),
}


def calls(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """(what stands before the dot, name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            yield "", node.func.id, node
        elif isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func.value), node.func.attr, node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or PACKAGE)
def test_nothing_runs_code_from_data(path: Path) -> None:
    for owner, name, call in calls(path):
        assert (owner, name) not in FORBIDDEN
        settings = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert settings.get("shell") != "True"
        assert settings.get("trust_remote_code") != "True"


def test_weights_are_loaded_at_one_place_and_safely() -> None:
    places = [
        (dotted(path), {word.arg: ast.unparse(word.value) for word in call.keywords})
        for path in SOURCES
        for owner, name, call in calls(path)
        if (owner, name)
        in {("torch", "load"), ("torch.jit", "load"), ("torch.serialization", "load")}
    ]
    assert [(name, settings["weights_only"]) for name, settings in places] == [
        ("checkpoint", "True")
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: dotted(path) or PACKAGE)
def test_nothing_is_printed_or_read_from_the_environment_on_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if not isinstance(node, (ast.Expr, ast.Assign, ast.AnnAssign)):
            continue
        text = ast.unparse(node)
        assert not text.startswith("print(")
        assert "environ" not in text
        assert "getenv" not in text


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_public_classes_and_functions_are_explained_and_typed(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"class {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            assert node.returns is not None, f"{node.name} says nothing of what it returns"


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_constructors_take_no_anonymous_settings(path: Path) -> None:
    """A `**kwargs` would hide settings from --help; Lightning's Trainer alone is passed on."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name != "Trainer":
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                    assert function.args.kwarg is None, f"{node.name} takes **kwargs"


def test_what_callbacks_and_models_export_is_there() -> None:
    for room in ("callbacks", "models"):
        module = importlib.import_module(f"{PACKAGE}.{room}")
        assert all(hasattr(module, name) for name in module.__all__)
        assert module.__all__ == sorted(module.__all__)
