"""Names of what is logged -> the page that explains them."""

from pathlib import Path

from lmtemplate import metric_names

PAGE = Path(__file__).parents[1] / "docs/runs.md"


def test_every_name_is_explained_on_the_page_about_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = [value for key, value in vars(metric_names).items() if key.isupper()]
    assert len(names) == len(set(names)) > 5
    assert [name for name in names if f"`{name}`" not in text] == []
