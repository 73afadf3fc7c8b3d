"""A path -> the text of a plain file, in bounded time and memory."""

import errno
import os
from pathlib import Path
from typing import Any

LARGEST = 2**28  # bytes, as the index of 10^12 bytes of tokens has
LARGEST_YAML = 2**20  # bytes; the parser needs 10 s for as many
DEEPEST = 50  # levels of lists and mappings in each other


def at_home(path: str) -> Path:
    """`~` -> the user's home; what no user has stays, where `Path.expanduser` would raise."""
    return Path(os.path.expanduser(path))


def nests_deep(content: Any) -> bool:
    """Whether lists and mappings stand in each other on more levels than a run writes."""
    level = [content]
    for _ in range(DEEPEST):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [v for one in inner for v in (one.values() if isinstance(one, dict) else one)]
    return bool(level)


def read_plain(path: Path, most: int = LARGEST, errors: str = "strict") -> str:
    """Raises OSError for a pipe, a device or more than `most` bytes, UnicodeDecodeError."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    if (size := path.stat().st_size) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    with path.open(encoding="utf-8", errors=errors) as file:
        return file.read(size)  # one of /proc has no size, and may have no end
