"""A key never leaves its tenant's prefix."""

import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import FileId, new_file_id
from object_store import keys

TENANTS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
TABLES = st.text(min_size=1, max_size=200)
TABLE_IDS = st.integers(min_value=1, max_value=2**63 - 1)
HOSTILE = st.text(alphabet=st.sampled_from("aA0_-.=/\\ \x00\n%~é"), max_size=30)


@given(tenant=TENANTS, table=TABLES, table_id=TABLE_IDS, file_id=st.uuids())
def test_a_data_file_key_is_safe_whatever_the_table_is_called(
    tenant: str, table: str, table_id: int, file_id: FileId
) -> None:
    key = keys.data_file_key(tenant, table, table_id, file_id)
    assert keys.check(key) == key
    assert posixpath.normpath(key) == key
    assert re.fullmatch(
        rf"{tenant}/[A-Za-z0-9_]{{1,40}}-{table_id}/part-{file_id}\.parquet", key, re.ASCII
    )


@given(key=HOSTILE | st.text(max_size=30))
def test_a_key_that_is_accepted_stays_below_its_first_component(key: str) -> None:
    try:
        keys.check(key)
    except Invalid:
        return
    assert posixpath.normpath(f"root/{key}") == f"root/{key}"
    assert all(part and part[0] not in ".-" for part in key.split("/"))
    assert key.isascii()
    assert key.isprintable()
    assert not set(key) & set("\\ %~")


@given(tenant=TENANTS, other=TENANTS)
def test_no_tenants_prefix_holds_another_tenants_keys(tenant: str, other: str) -> None:
    key = keys.data_file_key(other, "t", 1, new_file_id())
    assert key.startswith(keys.tenant_prefix(tenant)) == (tenant == other)


@pytest.mark.parametrize(
    ("table", "folder"),
    [
        ("events", "events-7"),
        ("Sales 2026/Q1", "Sales_2026_Q1-7"),
        ("../../etc", "etc-7"),
        ("日本", "table-7"),
        ("x" * 200, "x" * 40 + "-7"),
        ("____", "table-7"),
    ],
)
def test_the_tables_name_is_cut_down_to_safe_characters(table: str, folder: str) -> None:
    file_id = new_file_id()
    key = keys.data_file_key("acme", table, 7, file_id)
    assert key == f"acme/{folder}/part-{file_id}.parquet"


@pytest.mark.parametrize("tenant", ["", "Acme", "a/b", "..", "a" * 64, "_a", "a\n"])
def test_a_tenant_that_is_no_tenants_name_has_no_prefix(tenant: str) -> None:
    with pytest.raises(Invalid):
        keys.tenant_prefix(tenant)


def test_lengths_are_bounded() -> None:
    longest = "/".join(["x" * 200, "y" * 200, "z" * 110])
    assert len(longest) == keys.KEY_MAX_CHARS
    assert keys.check(longest) == longest
    for too_long in (longest + "z", "x" * 201):
        with pytest.raises(Invalid) as caught:
            keys.check(too_long)
        assert caught.value.code is ErrorCode.INVALID_COMMAND
        assert len(caught.value.context["key"]) <= 80


def test_a_prefix_is_a_folder() -> None:
    assert keys.check_prefix("") == ""
    assert keys.check_prefix("a/b") == keys.check_prefix("a/b/") == "a/b/"
    with pytest.raises(Invalid):
        keys.check_prefix("a/b//")
