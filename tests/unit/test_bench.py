"""The README's figures are those that were measured."""

from tests.bench.table import table
from tests.readme import assert_part


def test_the_table_in_the_readme_is_what_was_measured() -> None:
    assert_part("bench", table())
