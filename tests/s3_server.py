"""A real S3 server for the tests.

In this order: the server that the environment names; a container, where a Docker engine answers;
OpenStack Swift with its S3 door, from the package index, in a venv of its own that is kept in the
user's cache folder. All listen on this machine only.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from duckmesh.clock import Deadline
from object_store.options import StoreOptions

HERE = Path(__file__).parent
LOCK_FILE = HERE / "swift-requirements.lock"
SWIFT_CREDENTIALS = ("test:tester", "testing")
CONTAINER_IMAGE = "rustfs/rustfs:latest"
INSTALL_LIMIT = timedelta(minutes=4)
START_LIMIT = timedelta(seconds=60)
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class S3Server:
    """Where a server answers, and who may ask it."""

    endpoint: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str = "us-east-1"

    def options(self, **changes: Any) -> StoreOptions:
        """How a store reaches this server; `changes` are further options, or other values."""
        mine: dict[str, Any] = {
            "endpoint": self.endpoint,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "region": self.region,
            "allow_http": self.endpoint.startswith("http://"),
        }
        return StoreOptions(**mine | changes)

    def client(self) -> Any:
        """A client that is not under test, to look at the server from outside."""
        from botocore.config import Config
        from botocore.session import get_session

        return get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}),
        )


def new_bucket_name() -> str:
    return f"duckmesh-{uuid4().hex[:16]}"


@contextmanager
def running_server(folder: Path, *, watched_pid: int) -> Iterator[S3Server]:
    """A server for as long as the block lasts, shared by those who name the same `folder`.

    Swift outlives the block when others may use it too, and ends with the process `watched_pid`.
    """
    if named := _named_by_environment():
        yield named
    elif _docker_answers():
        with _container() as server:
            yield server
    else:
        yield shared_swift(folder, watched_pid=watched_pid)


def shared_swift(folder: Path, *, watched_pid: int) -> S3Server:
    """The one Swift of `folder`: started by whoever comes first, ending with `watched_pid`."""
    folder.mkdir(parents=True, exist_ok=True)
    announced = folder / "port"
    with _locked(folder / "lock"):
        if not announced.exists():
            _start_swift(folder, announced, watched_pid)
        port = int(announced.read_text())
    return S3Server(f"http://127.0.0.1:{port}", *SWIFT_CREDENTIALS)


def _named_by_environment() -> S3Server | None:
    endpoint = os.environ.get("DUCKMESH_TEST_S3_ENDPOINT")
    if endpoint is None:
        return None
    return S3Server(
        endpoint,
        os.environ["DUCKMESH_TEST_S3_ACCESS_KEY"],
        os.environ["DUCKMESH_TEST_S3_SECRET_KEY"],
        os.environ.get("DUCKMESH_TEST_S3_REGION", "us-east-1"),
    )


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    asked = subprocess.run(
        ["docker", "info", "--format", "{{.ID}}"], capture_output=True, check=False, timeout=20
    )
    return asked.returncode == 0


@contextmanager
def _container() -> Iterator[S3Server]:
    from testcontainers.core.container import DockerContainer

    name, secret = "duckmesh", "duckmesh-secret"
    container = (
        DockerContainer(CONTAINER_IMAGE)
        .with_env("RUSTFS_ACCESS_KEY", name)
        .with_env("RUSTFS_SECRET_KEY", secret)
        .with_exposed_ports(9000)
    )
    with container:
        host, port = container.get_container_host_ip(), container.get_exposed_port(9000)
        server = S3Server(f"http://{host}:{port}", name, secret)
        _wait_until_it_answers(server)
        yield server


def _wait_until_it_answers(server: S3Server) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = Deadline.after(START_LIMIT)
    while True:
        with contextlib.suppress(BotoCoreError, ClientError):
            server.client().list_buckets()
            return
        if deadline.passed:
            raise RuntimeError("the S3 server does not answer")
        time.sleep(POLL_SECONDS)


def _start_swift(folder: Path, announced: Path, watched_pid: int) -> None:
    """Start the server process and wait for its port. It ends by itself with `watched_pid`."""
    python = _swift_python()
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                python,
                HERE / "s3_swift_launcher.py",
                folder / f"swift-{uuid4().hex[:8]}",
                str(watched_pid),
                announced,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # An interrupt for the test run is not one for its server.
            env={**os.environ, "SWIFT_CREDENTIALS": "/".join(SWIFT_CREDENTIALS)},
        )
    deadline = Deadline.after(START_LIMIT)
    while not announced.exists():
        if process.poll() is not None or deadline.passed:
            process.kill()
            process.wait()
            raise RuntimeError(f"Swift did not start:\n{log.read_text()}")
        time.sleep(POLL_SECONDS)
    # It ends with the watched process, which waits for nobody: so do not warn that it still runs.
    process.returncode = 0


def _swift_python() -> Path:
    """The interpreter of Swift's venv, which is made, once for each lock file, when it is missing.

    A file inside says that it is whole: die before it is written, and the venv is built anew.
    """
    lock = LOCK_FILE.read_bytes()
    version = next(
        line.split(b"==")[1].split()[0].decode()
        for line in lock.splitlines()
        if line.startswith(b"swift==")
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "duckmesh-tests"
    cache.mkdir(parents=True, exist_ok=True)
    python_tag = f"{sys.version_info.major}.{sys.version_info.minor}"
    venv = cache / f"swift-{version}-py{python_tag}-{sha256(lock).hexdigest()[:8]}"
    with _locked(venv.with_name(f"{venv.name}.lock")):
        if not (venv / "installed").exists():
            shutil.rmtree(venv, ignore_errors=True)
            _install(venv)
            (venv / "installed").touch()
    return venv / "bin" / "python"


def _install(venv: Path) -> None:
    base = getattr(sys, "_base_executable", None) or sys.executable
    _run([base, "-m", "venv", "--without-pip", str(venv)])
    python = str(venv / "bin" / "python")
    for installer in _installers(base, python):
        try:
            _run([*installer, "--require-hashes", "--only-binary", ":all:", "-r", str(LOCK_FILE)])
        except RuntimeError as error:
            failure = error
        else:
            return
    raise RuntimeError(
        "Swift, the S3 server of the tests, could not be installed. Either start a Docker engine, "
        "or name a server in DUCKMESH_TEST_S3_ENDPOINT, DUCKMESH_TEST_S3_ACCESS_KEY and "
        "DUCKMESH_TEST_S3_SECRET_KEY."
    ) from failure


def _installers(base: str, python: str) -> Iterator[list[str]]:
    """Ways to install into a venv that has no pip: uv, our own pip, the base interpreter's."""
    if uv := shutil.which("uv"):
        yield [uv, "pip", "install", "--python", python]
    for pip_owner in (sys.executable, base, shutil.which("python3") or base):
        yield [pip_owner, "-m", "pip", "--python", python, "install", "--quiet"]


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_LIMIT.total_seconds(),
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}\n{done.stderr}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file lock: one builds or starts, the others wait and find it done."""
    with path.open("a") as file:
        flock(file, LOCK_EX)
        yield
