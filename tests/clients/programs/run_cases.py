"""Runs the cases of a client's program, inside that client's environment.

    python run_cases.py PROGRAM RESULTS HOST PORT OPEN_PORT TLS_PORT CERTIFICATE KEY

A case is a function of the program whose name begins with `case_`; it takes the place of the
service. Each result is one line of JSON in RESULTS. Needs nothing but Python 3.10.
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple


class Place(NamedTuple):
    """Where the service answers: `port` wants `key`, `open_port` wants none, `tls_port` has TLS."""

    host: str
    port: int
    open_port: int
    tls_port: int
    certificate: str
    """The file of the authority that signed the TLS certificate, in PEM."""
    key: str

    @property
    def uri(self) -> str:
        return f"grpc://{self.host}:{self.port}"


def load(program: str) -> Any:
    # Programs import what they share from beside them.
    sys.path.insert(0, str(Path(program).parent))
    spec = importlib.util.spec_from_file_location(Path(program).stem, program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(case: Any, place: Place) -> dict[str, Any]:
    try:
        case(place)
    except Exception:  # noqa: BLE001 - a case fails with whatever it raises
        return {"case": case.__name__, "failure": traceback.format_exc()[-4000:]}
    return {"case": case.__name__, "failure": None}


def main(program: str, results: str, *address: str) -> None:
    host, port, open_port, tls_port, certificate, key = address
    place = Place(host, int(port), int(open_port), int(tls_port), certificate, key)
    with Path(results).open("w", encoding="utf-8") as file:

        def tell(**line: Any) -> None:
            print(json.dumps(line), file=file, flush=True)

        module = load(program)
        tell(version=module.version())
        for name in [name for name in vars(module) if name.startswith("case_")]:
            tell(**run(getattr(module, name), place))


if __name__ == "__main__":
    main(*sys.argv[1:])
