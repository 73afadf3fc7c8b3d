"""A path -> the text of a plain file, or what its YAML says, in bounded time and memory."""

import errno
import functools
from pathlib import Path
from typing import Any

import yaml

LARGEST = 2**28  # the index of 10^12 bytes of tokens has as many
LARGEST_YAML = 2**20  # its parser needs 10 s for as many
MOST_VALUES = 100_000  # of YAML, with what its anchors repeat


def read_plain(path: Path, most: int = LARGEST) -> str:
    """Raises OSError for a larger file, a pipe or a device, which never end, UnicodeDecodeError."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    with path.open(encoding="utf-8") as file:
        size = path.stat().st_size  # 0 for what the system makes up as it is read
        text = file.read(most + 1) if size <= most else ""
    if max(size, len(text)) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return text


@functools.lru_cache(maxsize=1)  # several parts of a report read the same config
def parse_yaml(text: str) -> Any:
    """Raises YAMLError, and ValueError where anchors make a few lines into very many."""
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    waiting = [root] if root else []
    for _ in range(MOST_VALUES):
        if not waiting:
            return root and loader.construct_document(root)
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            waiting += [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    raise ValueError(f"it has more than {MOST_VALUES:,} values, counting what anchors repeat")


def read_yaml(path: Path) -> Any:
    """Raises what `read_plain` and `parse_yaml` raise, RecursionError where it nests too deep."""
    return parse_yaml(read_plain(path, LARGEST_YAML))
