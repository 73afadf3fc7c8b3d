"""The source itself: who imports whom, what loads weights, which private names are relied upon."""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from functools import cache

import pytest

from lmtemplate import plug
from tests.source import (
    PACKAGE,
    imports,
    modules,
    nodes,
    own_imports,
    packages,
    private_names,
    tree,
)

MODULES = modules()

# A module imports only from rows further down. The first pattern that fits a name counts.
ROWS = (
    "__main__",
    "study study.*",
    "fit evaluate",
    "cli callbacks callbacks.* generate",
    "cli_classes",
    "trainer",
    "module checkpoint checkpoint.* data.prepare data.datamodule",
    "data.formats.* data.shard_writer data.train_tokenizer record run_length",
    "models models.gpt* loss data.corpus data.tokenizer data.shards data.sampler metrics optimizers "
    "schedules run_dir cli_errors",
    "data.content cli_words",
    "models.* muon hardware plain_file plug redact terminal metric_names data.formats data",
    "errors",
)
# These import a neighbour of their row.
EXCEPTIONS = {
    ("cli", "callbacks"),  # whose keys it lists
    ("cli_classes", "callbacks"),
    ("callbacks.samples", "generate"),
    ("module", "data.datamodule"),  # the contract of the data that it reads
}
# Inside of these, modules import each other, without circles.
ROOMS = ("study", "callbacks", "checkpoint", "data.formats", "models")


def row(name: str) -> int | None:
    """How far down a module stands; None if no row names it."""
    fits = (depth for depth, row in enumerate(ROWS) if any(fnmatch(name, x) for x in row.split()))
    return next(fits, None)


def room(name: str) -> str:
    """The room of a module that may import its neighbours; else its own name."""
    return next((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), name)


def test_every_module_has_a_row() -> None:
    assert [name for name in MODULES if name not in ("", "data") and row(name) is None] == []


def test_a_module_imports_only_rows_below_it() -> None:
    neighbours = {
        (name, other)
        for name, path in MODULES.items()
        for other in own_imports(path, MODULES)
        if room(name) != room(other) and (row(other) or 0) <= (row(name) or 0)
    }
    assert neighbours == EXCEPTIONS


def test_rooms_import_each_other_without_circles() -> None:
    uses = {name: own_imports(path, MODULES) - {name} for name, path in MODULES.items()}
    while free := [name for name, others in uses.items() if not others & uses.keys()]:
        for name in free:
            del uses[name]
    assert uses == {}


def test_the_core_knows_of_study_at_one_place() -> None:
    """In plug.py; neither an import nor a name in quotes elsewhere."""
    study = f"{PACKAGE}.study"
    knows = {
        name
        for name, path in MODULES.items()
        if room(name) != "study"
        for text in [
            *imports(path),
            *(node.value for node in nodes(path) if isinstance(node, ast.Constant)),
        ]
        if isinstance(text, str) and f"{text}.".startswith(f"{study}.")
    }
    assert knows <= {"plug"}


def test_models_and_data_never_meet() -> None:
    foreign = {"models": "data", "data": "models"}
    offenders = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in own_imports(path, MODULES)
        if foreign.get(name.partition(".")[0]) == other.partition(".")[0]
    ]
    assert offenders == []


def test_lightning_and_jsonargparse_stay_where_they_belong() -> None:
    lightning = {"fit", "evaluate", "cli", "cli_classes", "trainer", "module", "data.datamodule"}
    lightning.add("study.plan.schema")  # which reads the Trainer's constructor
    lightning |= {
        path.rpartition(".")[0].removeprefix(f"{PACKAGE}.") for path in plug.callbacks().values()
    }
    offenders = []
    for name, path in MODULES.items():
        used = packages(path)
        if used & {"lightning", "pytorch_lightning"}:
            offenders += [name] if room(name) != "callbacks" and name not in lightning else []
        if "jsonargparse" in used and name not in ("cli", "cli_classes", "cli_errors", "__main__"):
            offenders.append(f"{name}, jsonargparse")
    assert offenders == []


def loaded_by(*names: str) -> set[str]:
    """Top-level packages in memory after importing these, in a process of their own."""
    code = f"import sys, {', '.join(names)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    foreign = loaded_by(PACKAGE) - loaded_by("this") - {PACKAGE}
    assert not {name for name in foreign if not name.startswith("_")} - set(sys.stdlib_module_names)


@pytest.mark.slow
def test_prepare_and_generate_do_not_import_lightning() -> None:
    names = ["data.prepare", "generate"]
    loaded = loaded_by(*(f"{PACKAGE}.{name}" for name in names))
    assert not loaded & {"lightning", "lightning_fabric", "tensorboard", "jsonargparse"}


# Private names of libraries that we rely upon; docs/house.md says for what, and which test fails
# when one is gone.
PRIVATE = {
    *("_typehints", "_batches_that_stepped", "_broadcast_sigterm_tensor"),
    "_step_supports_amp_scaling",
}


def test_no_other_private_name_of_a_library_is_relied_upon() -> None:
    used = {one for path in MODULES.values() for one in private_names(path)}
    allowed = {name for name in used if any(fnmatch(name, pattern) for pattern in PRIVATE)}
    assert used - allowed == set()
    assert [
        pattern for pattern in PRIVATE if not any(fnmatch(name, pattern) for name in used)
    ] == []


def test_a_function_fits_on_a_screen() -> None:
    offenders = [
        f"{name}.{node.name} has {length} lines"
        for name, path in MODULES.items()
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert offenders == []


def test_modules_and_public_classes_say_what_they_are() -> None:
    offenders = []
    for name, path in MODULES.items():
        if path.stat().st_size and not ast.get_docstring(tree(path)):
            offenders.append(name)
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                offenders += [] if ast.get_docstring(node) else [f"{name}.{node.name}"]
    assert offenders == []


# What runs code from data, or hides where weights are loaded. `pickle` may be imported for the
# name of its error.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load"),
    *("pickle.loads", "pickle.Unpickler", "yaml.load", "yaml.full_load", "yaml.unsafe_load"),
    *("np.load", "numpy.load", "joblib.load", "marshal.loads"),
}
FORBIDDEN_SETTINGS = {("shell", "True"), ("trust_remote_code", "True")}


@cache
def calls() -> list[tuple[str, str, dict[str | None, str]]]:
    """(module, what is called, its keywords) of every call in the package."""
    return [
        (name, ast.unparse(node.func), {w.arg: ast.unparse(w.value) for w in node.keywords})
        for name, path in MODULES.items()
        for node in nodes(path)
        if isinstance(node, ast.Call)
    ]


def test_nothing_runs_code_from_data() -> None:
    offenders = [
        f"{name} calls {called}"
        for name, called, settings in calls()
        if called in FORBIDDEN or FORBIDDEN_SETTINGS & settings.items()
    ]
    assert offenders == []


def test_weights_are_loaded_at_one_place_and_safely() -> None:
    loading = {"torch.load", "torch.jit.load", "torch.serialization.load"}
    places = [(name, words["weights_only"]) for name, called, words in calls() if called in loading]
    assert places == [("checkpoint.files", "True")]


def test_nothing_is_printed_or_read_from_the_environment_on_import() -> None:
    offenders = [
        f"{name}:{node.lineno}"
        for name, path in MODULES.items()
        for node in tree(path).body
        if isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign)
        for part in ast.walk(node)
        if getattr(part, "id", getattr(part, "attr", "")) in ("print", "environ", "getenv")
    ]
    assert offenders == []


def test_constructors_take_no_anonymous_settings() -> None:
    """A `**kwargs` would hide settings from --help."""
    offenders = [
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in nodes(path)
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        if function.args.kwarg is not None
    ]
    assert offenders == []
