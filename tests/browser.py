"""A page, opened in a headless browser that reaches no network -> a picture, and its console."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(NAMES)} on PATH")

# A load that fails leaves nothing on standard error; one that this policy refuses is told there.
ONLY_ITSELF = """
<meta http-equiv="Content-Security-Policy"
content="default-src data: blob: 'unsafe-inline' 'unsafe-eval'">
<script>addEventListener("securitypolicyviolation", (violation) =>
console.error("error: the page loads " + violation.blockedURI))</script>
"""


def open_offline(page: Path, screenshot: Path, *flags: str) -> list[str]:
    """Open a self-contained page, let it run for some seconds, and photograph it as a PNG.

    Flags of the browser come last: they win, as another --window-size.

    Returns the console's messages, one line each. An error has `rror` in it: a script's, or the
    wish to load anything that is not in the page.
    """
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder, "page.html")
        doctype, _, rest = page.read_text(encoding="utf-8").partition(">")
        copy.write_text(f"{doctype}>{ONLY_ITSELF}{rest}", encoding="utf-8")
        done = subprocess.run(
            [
                BROWSER,
                "--headless",
                "--disable-gpu",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={folder}/profile",
                "--enable-logging=stderr",
                "--window-size=1300,2100",
                "--virtual-time-budget=5000",
                f"--screenshot={screenshot.resolve()}",
                *flags,
                copy.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]
