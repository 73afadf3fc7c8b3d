"""A path -> the text of a plain file, in bounded time and memory."""

import errno
from pathlib import Path

LARGEST = 2**28  # the index of 10^12 bytes of tokens has as many
LARGEST_YAML = 2**20  # its parser needs 10 s for as many


def read_plain(path: Path, most: int = LARGEST, errors: str = "strict") -> str:
    """Raises OSError for a larger file, a pipe or a device, which never end, UnicodeDecodeError."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    with path.open(encoding="utf-8", errors=errors) as file:
        size = path.stat().st_size  # 0 for what the system makes up as it is read
        text = file.read(most + 1) if size <= most else ""
    if max(size, len(text)) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return text
