"""Write TPC-H's tables as Parquet, and its queries as JSON: `tpch_data.py <scale> <folder>`.

Runs in the peers' environment, which has DuckDB and its tpch extension and nothing of this project.
"""

import json
import sys
from pathlib import Path

import duckdb
import duckdb_extension_tpch


def main() -> None:
    scale, folder = float(sys.argv[1]), Path(sys.argv[2])
    home = Path(duckdb_extension_tpch.__file__).parent
    (extension,) = home.glob(f"extensions/v{duckdb.__version__}/*.duckdb_extension")
    with duckdb.connect() as connection:
        connection.execute(f"LOAD '{extension}'")
        connection.execute(f"CALL dbgen(sf = {scale})")
        for (table,) in connection.execute("SHOW TABLES").fetchall():
            file = folder / f"{table}.parquet"
            connection.execute(f"COPY {table} TO '{file}' (FORMAT parquet)")
        queries = connection.execute("SELECT query_nr, query FROM tpch_queries()").fetchall()
    texts = {number: text.strip().rstrip(";") for number, text in queries}
    (folder / "queries.json").write_text(json.dumps(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
