import subprocess
import sys

_PROGRAM = """
import sys
from duckmesh.imports import do_without_pandas
if sys.argv[1] == "without":
    do_without_pandas()
import pyarrow as pa
assert pa.array([1, None]).to_pylist() == [1, None]
print("pandas" in sys.modules)
"""


def _pandas_is_loaded(how: str) -> bool:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, how], capture_output=True, text=True, check=True
    )
    return done.stdout.strip() == "True"


def test_pyarrow_loads_pandas_only_where_it_is_wanted() -> None:
    assert _pandas_is_loaded("with")
    assert not _pandas_is_loaded("without")


def test_a_coordinator_loads_neither_duckdb_nor_a_door_before_it_needs_them() -> None:
    program = (
        "import sys, command_line.coordinating\n"
        "print(sorted({'duckdb', 'pyarrow.flight', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
