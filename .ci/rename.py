"""Old name, new name -> the new one in every text file of the clone, and on the package's folder.

Called by `make rename NAME=x`. Imports are sorted and lines are broken anew afterwards, as both depend
on the name.
"""

import importlib.metadata
import keyword
import re
import subprocess
import sys
from pathlib import Path

# The licence asks that its copyright line stays as it is.
UNTOUCHED = {Path("LICENSE")}


def objection(old: str, new: str) -> str:
    """Why ``new`` cannot be the package's name; empty if it can."""
    if not re.fullmatch(r"[a-z]([a-z0-9_]*[a-z0-9])?", new) or keyword.iskeyword(new):
        return "not a Python name in lower case: letters, digits and _ between them"
    if new == old:
        return "the name it has already"
    if Path(new).exists():
        return "also the name of a file or folder here"
    pins = re.findall(r"^[\w.-]+", Path("constraints.txt").read_text(encoding="utf-8"), re.M)
    needed = {re.sub(r"[-.]", "_", pin.lower()) for pin in pins} | sys.stdlib_module_names
    installed = set(importlib.metadata.packages_distributions().get(new, ())) - {new, old}
    if installed or new in needed:
        return "the name of a package that this project needs"
    return ""


def project_files() -> list[Path]:
    """Files that git has or would take, so never those of data/, runs/ and .venv."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape")
    if listing.returncode:
        sys.exit("error: this folder is no git clone, so its files are unknown. Type: git init")
    paths = sorted({Path(name) for name in listing.stdout.split("\0") if name})
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def rewrite(path: Path, old: str, new: str) -> bool:
    """Replace the word ``old`` in one file; false if it is not there, or the file is not text."""
    content = path.read_bytes()
    replaced = re.sub(rb"\b%b\b" % old.encode(), new.encode(), content)
    if b"\0" in content or replaced == content:
        return False
    path.write_bytes(replaced)
    return True


def main(old: str, new: str) -> None:
    """Rename, and say what to type next."""
    if reason := objection(old, new):
        sys.exit(f"error: NAME={new} is {reason}. Choose another.")
    files = [path for path in project_files() if path not in UNTOUCHED]
    changed = sum(rewrite(path, old, new) for path in files)
    Path(old).rename(new)
    for words in ("check --select I --fix", "format"):
        subprocess.run([sys.executable, "-m", "ruff", *words.split(), "--quiet", "."], check=True)
    print(f"{old} is now {new}, in {changed} files. Next: make test, then git add -A; git commit")
    if any(Path("runs").glob("*/checkpoints")):
        print(f"Runs made so far name {old} in their settings; only a clone with it reads them.")


if __name__ == "__main__":
    main(*sys.argv[1:])
