from pathlib import Path

from dynbench.dashboards.columns import columns_markdown
from dynbench.harness.compilemetrics import COMPILE_COLUMNS
from dynbench.harness.schema import COLUMNS

COMMITTED = Path(__file__).parents[2] / "docs" / "columns.md"


def test_the_committed_reference_is_the_generated_one() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == columns_markdown()


def test_every_column_has_its_line() -> None:
    markdown = columns_markdown()
    for column in (*COLUMNS.values(), *COMPILE_COLUMNS.values()):
        assert f"| `{column.name}` |" in markdown
        assert column.meaning.split("|")[0] in markdown
