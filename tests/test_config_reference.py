"""The reference in docs/configuration.md says what the schema says."""

from pathlib import Path

import msgspec
import pytest

from capi_core import config
from tests.support import config_reference
from tests.support.config_reference import DOCUMENT, STRUCTS, meanings, rewritten, table


def test_the_reference_is_the_one_that_the_schema_makes() -> None:
    document = DOCUMENT.read_text()
    assert document == rewritten(document), "run: make docs"


def test_each_struct_of_the_schema_has_its_table() -> None:
    """Also one that is added: each is found by its name in the module."""
    structs = {
        name
        for name, found in vars(config).items()
        if isinstance(found, type) and issubclass(found, msgspec.Struct) and found.__module__ == config.__name__
    }
    assert structs == STRUCTS.keys()
    assert {name for name in STRUCTS if DOCUMENT.read_text().count(f"<!-- table of {name} -->\n") != 1} == set()


@pytest.mark.parametrize("name", STRUCTS)
def test_each_member_has_a_row_with_a_meaning(name: str) -> None:
    for row in table(*STRUCTS[name]).splitlines()[2:]:
        member, default, kind, meaning = (cell.strip() for cell in row.strip("|").split(" | "))
        assert default, member
        assert kind, member
        assert meaning, f"{name}: {member} has no docstring"


class _Sample(msgspec.Struct, kw_only=True):
    """Members of each shape."""

    plain: int = 3
    told: float = 2.5
    """What it means,
    in two lines."""
    flag: bool = False
    """`true`: on."""


def test_meanings_are_the_docstrings_beside_the_members() -> None:
    assert meanings(_Sample) == {"told": "What it means, in two lines.", "flag": "`true`: on."}


def test_a_row_has_name_default_type_and_meaning() -> None:
    assert table(_Sample, "a.").splitlines()[2:] == [
        "| `a.plain` | 3 | integer |  |",
        "| `a.told` | 2.5 | number | what it means, in two lines |",
        "| `a.flag` | `false` | boolean | `true`: on |",
    ]


def test_what_stands_around_the_tables_stays() -> None:
    text = "before\n<!-- table of FeaturesConfig -->\nstale\n<!-- end of table -->\nafter\n"
    done = rewritten(text)
    assert done.startswith("before\n<!-- table of FeaturesConfig -->\n| member |")
    assert done.endswith("<!-- end of table -->\nafter\n")
    assert "stale" not in done
    assert rewritten(done) == done
    with pytest.raises(KeyError, match="NoConfig"):
        rewritten("<!-- table of NoConfig -->\n<!-- end of table -->")


def test_the_tool_rewrites_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "configuration.md"
    document.write_text("<!-- table of FeaturesConfig -->\n<!-- end of table -->\n")
    monkeypatch.setattr(config_reference, "DOCUMENT", document)
    config_reference.main()
    config_reference.main()
    assert "`auth`" in document.read_text()
    assert capsys.readouterr().out == "configuration.md: rewritten\nconfiguration.md: unchanged\n"
