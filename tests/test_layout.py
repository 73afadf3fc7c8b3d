"""The source itself: who imports whom, what loads weights, which private names are relied upon."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch

from lmtemplate import plug
from tests.source import (
    PACKAGE,
    imports,
    modules,
    own_imports,
    packages,
    private_names,
    tree,
)

MODULES = modules()

# A module imports only from rows below its own. The first pattern that fits a name counts.
ROWS: list[tuple[float, str]] = [
    (6, "__main__"),
    (5, "study study.*"),
    (4, "fit evaluate"),
    (3.5, "trainer"),
    (3, "cli callbacks callbacks.* generate export"),
    (2, "module checkpoint checkpoint.* data.prepare data.datamodule"),
    (1.5, "data.formats.* data.shard_writer data.train_tokenizer record flags"),
    (1, "models models.gpt* loss data.corpus data.tokenizer data.shards data.sampler"),
    (1, "metrics optimizers schedules run_length run_dir cli_errors crash"),
    (0, "models.base models.layers muon hardware plug redact streams data.formats"),
    (-1, "errors"),
]
# What a row may not do, and these do.
EXCEPTIONS = {
    ("cli", "callbacks"),  # whose keys it lists
    ("callbacks.samples", "generate"),
    ("module", "data.datamodule"),
    ("run_length", "loss"),
    ("run_length", "optimizers"),
}
# Inside of these, modules import each other, without circles.
ROOMS = ("study", "callbacks", "checkpoint", "data.formats", "models")


def row(name: str) -> float | None:
    return next((row for row, names in ROWS for one in names.split() if fnmatch(name, one)), None)


def room(name: str) -> str:
    """The room of a module that may import its neighbours; else its own name."""
    return next((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), name)


def test_every_module_has_a_row() -> None:
    assert [name for name in MODULES if name not in ("", "data") and row(name) is None] == []


def test_a_module_imports_only_rows_below_it() -> None:
    offenders = [
        f"{name} (row {row(name)}) imports {other} (row {row(other)})"
        for name, path in MODULES.items()
        for other in own_imports(path, MODULES)
        if room(name) != room(other)
        and (name, other) not in EXCEPTIONS
        and not (row(other) or 0) < (row(name) or 0)
    ]
    assert offenders == []


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
            *(node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)),
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
    lightning = {"fit", "evaluate", "cli", "trainer", "module", "data.datamodule"}
    lightning |= {
        path.rpartition(".")[0].removeprefix(f"{PACKAGE}.") for path in plug.callbacks().values()
    }
    offenders = []
    for name, path in MODULES.items():
        used = packages(path)
        if used & {"lightning", "pytorch_lightning"}:
            offenders += [name] if room(name) != "callbacks" and name not in lightning else []
        if "jsonargparse" in used and name not in ("cli", "cli_errors", "flags", "__main__"):
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


def test_prepare_generate_and_export_do_not_import_lightning() -> None:
    names = [name for name in ("data.prepare", "generate", "export") if name in MODULES]
    loaded = loaded_by(*(f"{PACKAGE}.{name}" for name in names))
    assert not loaded & {"lightning", "lightning_fabric", "tensorboard", "jsonargparse"}


# Private names of libraries that we rely upon -> what breaks without them.
PRIVATE = {
    "_actions": "cli_errors names the settings that a parser knows",
    "_apply": "metrics keeps float64 sums when a module changes its dtype",
    "_batches_that_stepped": "a resumed run logs at the right step",
    "_broadcast_sigterm_tensor": "a signal to one of several processes",
    "_compiled_call_impl": "a compiled net is told from another",
    "_foreach_add_": "Muon's update of many matrices at once",
    "_foreach_lerp": "the same",
    "_foreach_lerp_": "the same",
    "_foreach_mul_": "the same",
    "_step_supports_amp_scaling": "16-mixed with an optimizer that scales gradients itself",
    "_typehints": "a class that a config names by its last word",
}


def test_no_other_private_name_of_a_library_is_relied_upon() -> None:
    used = {f"{name}: {one}" for name, path in MODULES.items() for one in private_names(path)}
    assert sorted(one for one in used if one.partition(": ")[2] not in PRIVATE) == []


def test_files_and_functions_fit_on_a_screen_or_a_few() -> None:
    offenders = []
    for name, path in MODULES.items():
        if (length := len(path.read_text(encoding="utf-8").splitlines())) > 400:
            offenders.append(f"{name} has {length} lines")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                offenders += [f"{name}.{node.name} has {length} lines"] if length > 60 else []
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


def calls() -> Iterator[tuple[str, str, dict[str | None, str]]]:
    """(module, what is called, its keywords) of every call in the package."""
    for name, path in MODULES.items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                settings = {word.arg: ast.unparse(word.value) for word in node.keywords}
                yield name, ast.unparse(node.func), settings


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
        and any(word in ast.unparse(node) for word in ("print(", "environ", "getenv"))
    ]
    assert offenders == []


def test_constructors_take_no_anonymous_settings() -> None:
    """A `**kwargs` would hide settings from --help; Lightning's Trainer alone is passed on."""
    offenders = [
        f"{name}.{node.name}"
        for name, path in MODULES.items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef) and node.name != "Trainer"
        for function in node.body
        if isinstance(function, ast.FunctionDef) and function.name == "__init__"
        if function.args.kwarg is not None
    ]
    assert offenders == []
