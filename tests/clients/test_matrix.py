"""The client matrix: every case of every client, against real processes.

A client that is not in our own lock is marked `clients` and runs with `make test-clients`. One
that cannot be installed fails, unless `DUCKMESH_TEST_CLIENTS_MAY_BE_MISSING=1` says to skip it.
"""

import os
from collections.abc import Callable

import pytest

from tests.clients.results import CLIENTS, GAPS, Client, Place, Run, run_client

MAY_BE_MISSING = "DUCKMESH_TEST_CLIENTS_MAY_BE_MISSING"
EACH_CASE = [
    pytest.param(
        client, case, id=f"{client.name}-{case}", marks=() if client.ours else pytest.mark.clients
    )
    for client in CLIENTS
    for case in client.cases()
]


@pytest.fixture(scope="module")
def run_of(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Client], Run]:
    """What a client's program said; each program runs once."""
    runs: dict[str, Run] = {}

    def run(client: Client) -> Run:
        if client.name not in runs:
            folder = tmp_path_factory.mktemp(client.name.replace(" ", "-"))
            runs[client.name] = run_client(client, place, folder)
        return runs[client.name]

    return run


@pytest.mark.parametrize(("client", "case"), EACH_CASE)
def test_case(
    client: Client,
    case: str,
    run_of: Callable[[Client], Run],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("client", client.name)
    run = run_of(client)
    if run.not_installed is not None:
        record_property("not_run", run.not_installed)
        if os.environ.get(MAY_BE_MISSING) == "1":
            pytest.skip(run.not_installed)
        pytest.fail(f"{client.name} cannot be installed: {run.not_installed}", pytrace=False)
    record_property("version", run.version)
    if case not in run.failures:
        pytest.fail(f"the program ended before this case:\n{run.output}", pytrace=False)
    failure, gap = run.failures[case], GAPS.get((client.name, case))
    if gap is not None:
        record_property("not_run", gap)
        assert failure is not None, f"{case} passes: it is no gap any more ({gap})"
        pytest.xfail(gap)
    if failure is not None:
        pytest.fail(failure, pytrace=False)


def test_each_client_has_cases() -> None:
    assert [client.name for client in CLIENTS if len(client.cases()) < 2] == []
