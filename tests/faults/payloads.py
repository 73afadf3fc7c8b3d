"""Checkpoint files that would run a command, leave a file or fill the memory if anything let them.

Each attack is a pickle that calls a function with arguments; the containers hold it in the formats
that `torch.load` takes.
"""

import io
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Call:
    """Pickles as a call of a function, which need not be importable here."""

    def __init__(self, name: str, *arguments: Any, state: Any = None) -> None:
        self.name = name
        self.arguments = arguments
        self.state = state


class Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python can be extended
    """Writes a Call as opcodes, so that building the file runs nothing, either."""

    def save(self, thing: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(thing, Call):
            super().save(thing, save_persistent_id)
            return
        module, _, name = thing.name.partition(":")
        if self.proto >= 4:
            self.save(module)
            self.save(name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.save(thing.arguments)
        self.write(pickle.REDUCE)
        if thing.state is not None:
            self.save(thing.state)
            self.write(pickle.BUILD)


def dumps(thing: Any, protocol: int = 2) -> bytes:
    """Protocol 2 is that of `torch.save`."""
    file = io.BytesIO()
    Pickler(file, protocol).dump(thing)
    return file.getvalue()


def instance(call: Call) -> bytes:
    """The call as the opcode INST, which needs neither GLOBAL nor REDUCE."""
    module, _, name = call.name.partition(":")
    text = str(call.arguments[0]).encode()
    argument = b"X" + len(text).to_bytes(4, "little") + text
    return b"\x80\x02}U\x0astate_dict(" + argument + f"i{module}\n{name}\n".encode() + b"s."


def archive(path: Path, data: bytes, method: int = zipfile.ZIP_STORED, **more: bytes) -> None:
    """A file as `torch.save` lays it out, with this pickle in it."""
    entries = {"data.pkl": data, "byteorder": b"little", **more, "version": b"3\n"}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries.items():
            entry = zipfile.ZipInfo(f"archive/{name}")
            entry.compress_type = method
            file.writestr(entry, content)
            entry.external_attr = 0  # is written at the end; torch sets none


def calls(canary: Path) -> dict[str, Call]:
    """Ways of leaving the canary, importing its module, or reaching further."""
    touch, python = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    nested = dumps(Call("posix:system", touch))
    return {
        call.name + "".join(f"({type(a).__name__})" for a in call.arguments[1:2]): call
        for call in (
            Call("os:system", touch),
            Call("posix:system", touch),
            Call("nt:system", touch),
            Call("os:popen", touch),
            Call("os:execv", "/bin/touch", ["touch", str(canary)]),
            Call("subprocess:Popen", ["touch", str(canary)]),
            Call("subprocess:getoutput", touch),
            Call("subprocess:check_call", ["touch", str(canary)]),
            Call("pty:spawn", ["touch", str(canary)]),
            Call("builtins:eval", python),
            Call("builtins:exec", python),
            Call("builtins:compile", python, "canary", "exec"),
            Call("builtins:__import__", "canary_module"),
            Call("builtins:open", str(canary), "w"),
            Call("builtins:getattr", Call("builtins:__import__", "os"), "system"),
            Call("builtins:map", Call("builtins:getattr", "os", "system"), [touch]),
            Call("__builtin__:eval", python),
            Call("importlib:import_module", "canary_module"),
            Call("importlib._bootstrap:_gcd_import", "canary_module"),
            Call("runpy:run_path", str(canary.with_name("canary_module.py"))),
            Call("runpy:_run_code", python, {}),
            Call("timeit:timeit", python),
            Call("pdb:run", python),
            Call("cProfile:run", python),
            Call("code:InteractiveInterpreter.runsource", python),
            Call("pathlib:Path.touch", str(canary)),
            Call("shutil:copyfile", "/etc/hostname", str(canary)),
            Call("shutil:rmtree", str(canary.parent)),
            Call("webbrowser:open", f"file://{canary}"),
            Call("urllib.request:urlopen", "http://127.0.0.1:9/canary"),
            Call("ctypes:CDLL", str(canary)),
            Call("pickle:loads", nested),
            Call("_pickle:loads", nested),
            Call("marshal:loads", b"canary"),
            Call("types:FunctionType", Call("types:CodeType", b"canary"), {}),
            Call("functools:partial", Call("builtins:getattr", "os", "system"), touch),
            Call("functools:reduce", Call("builtins:getattr", "os", "system"), [touch, touch]),
            Call("operator:methodcaller", "system", touch),
            Call("operator:attrgetter", "system"),
            Call("copyreg:_reconstructor", Call("builtins:getattr", "os", "system"), None),
            Call("collections:namedtuple", "canary", ["a"]),
            Call("logging.config:dictConfig", {"version": 1, "handlers": {"()": "os.system"}}),
            Call("yaml:unsafe_load", f"!!python/object/apply:os.system [{touch}]"),
            Call("numpy:load", str(canary)),
            Call("numpy.core.multiarray:_reconstruct", touch),
            Call("torch:load", str(canary)),
            Call("torch.serialization:load", str(canary)),
            Call("torch.serialization:os.system", touch),
            Call("torch.storage:_load_from_bytes", nested),
            Call("torch.hub:load", "canary/canary", "canary"),
            Call("torch.jit:load", str(canary)),
            Call("torch._utils:_import_dotted_name", "canary_module.Thing"),
            Call("torch._utils:_rebuild_wrapper_subclass", touch),
            Call("torch._tensor:_rebuild_from_type_v2", Call("os:system", touch), None, (), None),
            Call("torch.utils.cpp_extension:load_inline", "canary", "int canary;"),
            Call("torch.package:PackageImporter", str(canary)),
            Call("torch.nn.modules.module:Module.__setstate__", {"canary": 1}),
            Call("torch:ScriptObject", touch),
            Call("lightning.pytorch.core.saving:_load_state", "canary_module.Thing"),
            Call("jsonargparse:set_parsing_settings", True),
            Call("lmtemplate.__main__:run", ["prepare", "--input", "x", "--output", str(canary)]),
            Call("lmtemplate.run_dir:write_text", str(canary), "canary"),
            Call("canary_module:Thing", touch),
            Call("__main__:Thing", touch),
        )
    }


# Where in a checkpoint a call stands.
PLACES: dict[str, Callable[[Call], Any]] = {
    "the file itself": lambda call: call,
    "state_dict": lambda call: {"state_dict": call},
    "a weight": lambda call: {"state_dict": {"net.head.weight": call}},
    "the name of a weight": lambda call: {"state_dict": {(call,): 1}},
    "optimizer": lambda call: {"state_dict": {}, "optimizer_states": [{"state": {0: call}}]},
    "loops": lambda call: {"state_dict": {}, "loops": {"fit_loop": {"state_dict": [call]}}},
    "callbacks": lambda call: {"state_dict": {}, "callbacks": {"Checkpoint": call}},
    "config": lambda call: {"state_dict": {}, "config": {"model": {"net": call}}},
    "hyper_parameters": lambda call: {"state_dict": {}, "hyper_parameters": {"a": call}},
    "random_states": lambda call: {"state_dict": {}, "random_states": (call,)},
    "state of an OrderedDict": lambda call: {
        "state_dict": Call("collections:OrderedDict", state={"a": call})
    },
}


def script(path: Path, _: Call) -> None:
    """A TorchScript program, which may hold objects with code of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


def legacy(path: Path, call: Call) -> None:
    """torch's format before 1.6: five pickles in a row."""
    start = [pickle.dumps(x) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(start) + dumps({"state_dict": call}) + pickle.dumps([]))


def tar(path: Path, call: Call) -> None:
    """torch's format before 0.1.10."""
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = dumps({"state_dict": call})
            information = tarfile.TarInfo(name)
            information.size = len(content)
            file.addfile(information, io.BytesIO(content))


def polyglot(path: Path, call: Call) -> None:
    """The old format in front, a sound zip file behind: which one counts depends on the reader."""
    archive(path, dumps({"state_dict": {}}))
    behind = path.read_bytes()
    legacy(path, call)
    path.write_bytes(path.read_bytes() + behind)


def climbing(path: Path, call: Call) -> None:
    """Entries that an unpacker would leave outside."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../canary", b"canary")
        file.writestr("/tmp/canary-of-lmtemplate", b"canary")
        file.writestr("archive/data.pkl", dumps({"state_dict": call}))


def sparse(path: Path, _: Call) -> None:
    """A sparse tensor whose indices lie outside it."""
    tensor = torch.sparse_coo_tensor(torch.tensor([[99]]), torch.ones(1), (2,), is_coalesced=False)
    torch.save({"state_dict": {"a": tensor}}, path)


CONTAINERS: dict[str, Callable[[Path, Call], None]] = {
    "a plain pickle": lambda path, call: path.write_bytes(dumps({"state_dict": call})) and None,
    "torch before 1.6": legacy,
    "a tar file": tar,
    "TorchScript": script,
    "a pickle before a zip file": polyglot,
    "names with ..": climbing,
    "code in a compressed entry": lambda path, call: archive(
        path, dumps({"state_dict": call}), zipfile.ZIP_DEFLATED
    ),
    "a file of constants": lambda path, call: archive(
        path, dumps({"state_dict": call}), **{"constants.pkl": dumps(call)}
    ),
    "opcodes of protocol 4": lambda path, call: archive(path, dumps({"state_dict": call}, 4)),
    "opcode INST": lambda path, call: archive(path, instance(call)),
}


def tensor_of(elements: int, stored: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A pickle of {"state_dict": {"a": tensor}} that claims these sizes for `stored` bytes."""
    file = io.BytesIO()

    class Claiming(Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return thing.key if isinstance(thing, Storage) else None

    class Storage:
        key = ("storage", torch.FloatStorage, "0", "cpu", elements)

    tensor = Call("torch._utils:_rebuild_tensor_v2", Storage(), stored, shape, stride, False, {})
    Claiming(file, 2).dump({"state_dict": {"a": tensor}, "global_step": 1})
    return file.getvalue()


def _bomb(path: Path) -> None:
    """64 MiB of zeros in 64 KiB; it could as well be a terabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", dumps({"state_dict": {}}))
        with file.open("archive/data/0", "w") as entry:
            for _ in range(64):
                entry.write(bytes(2**20))


def _overlapping(path: Path) -> None:
    """Entries that share their bytes: a small file of any size."""
    archive(path, dumps({"state_dict": {}}), **{"data/0": bytes(2**16)})
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        directory = content[file.start_dir :]
        start = file.start_dir
    entry = directory[: directory.index(b"PK\x05\x06")]
    records, end = (
        len(zipfile.ZipFile(path).infolist()),
        directory[directory.index(b"PK\x05\x06") :],
    )
    times = 50
    end = (
        end[:8]
        + (records * times).to_bytes(2, "little") * 2
        + (len(entry) * times).to_bytes(4, "little")
        + start.to_bytes(4, "little")
        + end[20:]
    )
    path.write_bytes(content[:start] + entry * times + end)


def _raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: archive(path, data)


# Files that would take memory or time, or that lie about themselves.
LIARS: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "zeros": lambda path: path.write_bytes(bytes(4096)) and None,
    "an empty zip file": lambda path: zipfile.ZipFile(path, "w").close(),
    "a zip file of zeros": _bomb,
    "overlapping entries": _overlapping,
    "a storage of 4 TB": lambda path: archive(
        path, tensor_of(2**40, 0, (2**40,), (1,)), **{"data/0": bytes(64)}
    ),
    "a storage of negative size": lambda path: archive(
        path, tensor_of(-1, 0, (4,), (1,)), **{"data/0": bytes(64)}
    ),
    "a shape larger than its storage": lambda path: archive(
        path, tensor_of(4, 0, (2**30,), (1,)), **{"data/0": bytes(16)}
    ),
    "an offset behind its storage": lambda path: archive(
        path, tensor_of(4, 2**40, (4,), (1,)), **{"data/0": bytes(16)}
    ),
    "a storage that is not there": _raw(tensor_of(4, 0, (4,), (1,))),
    "a text of 4 GB": _raw(b"\x80\x02X\xff\xff\xff\x7f."),
    "a number of 2 GB": _raw(b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "a memo of 4 billion": _raw(b"\x80\x02]r\xff\xff\xff\xff."),
    "an empty stack": _raw(b"\x80\x02."),
    "an unknown opcode": _raw(b"\x80\x02\xff."),
    "protocol 99": _raw(b"\x80\x63}."),
    "an extension code": _raw(b"\x80\x02\x82\x01."),
    "a list in itself": _raw(b"\x80\x02]q\x00h\x00a."),
    "100,000 lists in each other": _raw(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "no pickle at all": _raw(b""),
    "another thing": _raw(dumps(["a list"])),
    "no weights": _raw(dumps({"global_step": 1})),
    "weights that are none": _raw(dumps({"state_dict": {"net.a": "text"}, "global_step": 1})),
    "weights in a list": _raw(dumps({"state_dict": [1, 2], "global_step": 1})),
    "a step in words": _raw(dumps({"state_dict": {}, "global_step": "../../x"})),
    "a tokenizer that is a number": _raw(
        dumps({"state_dict": {}, "global_step": 1, "tokenizer": 5})
    ),
    "a config that is a text": _raw(
        dumps({"state_dict": {}, "global_step": 1, "config": "os.system"})
    ),
}
