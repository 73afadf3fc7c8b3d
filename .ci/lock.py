"""constraints.txt -> requirements.lock: the SHA-256 of each file that pip may install for a pin.

    .venv/bin/python .ci/lock.py INDEX > requirements.lock

INDEX is the address of a package index, as pip's --index-url takes it. The lock has the wheels for
CPython from 3.11 on where torch has wheels. torch itself is not in it: its file depends on the CUDA
version, and many of them come from another index.
"""

import re
import sys
import urllib.request
from pathlib import Path

from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
LINK = re.compile(r'<a[^>]*href="[^"#]*#sha256=([0-9a-f]{64})"[^>]*>\s*([^<\s]+)\s*</a>')
PLATFORM = re.compile(r"any|manylinux.*_(x86_64|aarch64)|macosx.*_(arm64|universal2)|win_amd64")


def is_for_us(tag: Tag) -> bool:
    version = re.fullmatch(r"(?:py|cp)3(\d*)", tag.interpreter)
    if version is None or not PLATFORM.fullmatch(tag.platform) or tag.abi.endswith("t"):
        return False
    return int(version[1] or 0) >= 11 or tag.abi in ("abi3", "none")


def hashes(index: str, name: str, version: str) -> list[str]:
    """SHA-256 of each wheel of this version that somebody may need."""
    address = f"{index.rstrip('/')}/{canonicalize_name(name)}/"
    with urllib.request.urlopen(address, timeout=60) as page:
        links = LINK.findall(page.read().decode())
    found = set()
    for digest, file in links:
        if file.endswith(".whl") and f"-{version}-" in file:
            *_, tags = parse_wheel_filename(file)
            if any(map(is_for_us, tags)):
                found.add(digest)
    if not found:
        sys.exit(f"no wheel of {name} {version} in {address}")
    return sorted(found)


def main(index: str) -> None:
    print("# Made of constraints.txt by .ci/lock.py, which says how. pip installs these or none.")
    for pin in CONSTRAINTS.read_text().splitlines():
        name, _, version = pin.partition("==")
        if version and not pin.startswith("#") and name != "torch":
            print(
                " \\\n    ".join(
                    [pin, *(f"--hash=sha256:{one}" for one in hashes(index, name, version))]
                )
            )


if __name__ == "__main__":
    main(sys.argv[1])
