"""Run OpenStack Swift with its S3 door in this one process, until the watched process ends.

Started by tests/s3_server.py with the interpreter of Swift's own venv; it imports nothing of ours.
Arguments: the folder for its data, the process with which it ends, the file for its port.
All four servers listen on 127.0.0.1. Killed at any line it leaves only files in its folder.
"""

import os
import sys
from pathlib import Path

os.environ["EVENTLET_NO_GREENDNS"] = "yes"

# eventlet reads the environment when Swift imports it.
from swift.common import utils

utils.monkey_patch()

import eventlet  # noqa: E402 - the patch comes first
import eventlet.wsgi  # noqa: E402
from swift.common import wsgi  # noqa: E402
from swift.common.ring.builder import RingBuilder  # noqa: E402
from swift.common.storage_policy import reload_storage_policies  # noqa: E402

PARTITION_POWER = 2
SERVERS = ("account", "container", "object")
WATCH_SECONDS = 0.2
IDLE_SECONDS = 60

PIPELINE = (
    "catch_errors proxy-logging etag-quoter s3api tempauth copy slo dlo versioned_writes symlink "
    "proxy-logging proxy-server"
)
PROXY_CONF = """[DEFAULT]
swift_dir = {folder}
bind_ip = 127.0.0.1
log_level = CRITICAL
[pipeline:main]
pipeline = {pipeline}
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
access_log_level = CRITICAL
[filter:etag-quoter]
use = egg:swift#etag_quoter
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
[filter:symlink]
use = egg:swift#symlink
"""

STORAGE_CONF = """[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = CRITICAL
[pipeline:main]
pipeline = {server}-server
[app:{server}-server]
use = egg:swift#{server}
"""


def write_ring(folder: Path, server: str, port: int) -> None:
    """One replica on one device: the tests need a true S3 server, not a cluster."""
    builder = RingBuilder(PARTITION_POWER, 1, 1)
    builder.add_dev(
        {"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": "d1"}
        | {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
    )
    builder.rebalance()
    builder.get_ring().save(str(folder / f"{server}.ring.gz"))


def write_configuration(folder: Path, credentials: str, ports: dict[str, int]) -> None:
    (folder / "devices" / "d1").mkdir(parents=True)
    suffix = "[swift-hash]\nswift_hash_path_suffix = tests\n"
    policy = "[storage-policy:0]\nname = only\ndefault = yes\n"
    (folder / "swift.conf").write_text(suffix + policy)
    for server in SERVERS:
        write_ring(folder, server, ports[server])
        (folder / f"{server}.conf").write_text(STORAGE_CONF.format(folder=folder, server=server))
    name, secret = credentials.split("/")
    account, user = name.split(":")
    (folder / "proxy.conf").write_text(
        PROXY_CONF.format(
            folder=folder, account=account, user=user, secret=secret, pipeline=PIPELINE
        )
    )


def serve(folder: Path, server: str, socket: object) -> None:
    """What swift.common.wsgi.run_server does, without its change of hub: four servers share one."""
    path = str(folder / f"{server}.conf")
    _, _, name = wsgi._initrp(path, f"{server}-server")
    app = wsgi.loadapp(path, global_conf={"log_name": name})
    eventlet.wsgi.server(
        socket,
        app,
        utils.NullLogger(),
        protocol=wsgi.SwiftHttpProtocol,
        socket_timeout=IDLE_SECONDS,
        capitalize_response_headers=False,  # S3 clients look for "ETag", not "Etag".
        max_size=1024,
    )


def watch(pid: int) -> None:
    """Return when the process `pid` is gone. A pidfd cannot be fooled by a reused pid."""
    descriptor = os.pidfd_open(pid)
    poll = eventlet.patcher.original("select").select
    while not poll([descriptor], [], [], 0)[0]:
        eventlet.sleep(WATCH_SECONDS)


def main() -> None:
    folder, watched, announce = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    sockets = {name: eventlet.listen(("127.0.0.1", 0)) for name in (*SERVERS, "proxy")}
    ports = {name: socket.getsockname()[1] for name, socket in sockets.items()}
    write_configuration(folder, os.environ["SWIFT_CREDENTIALS"], ports)
    utils.set_swift_dir(str(folder))
    reload_storage_policies()
    for name, socket in sockets.items():
        eventlet.spawn(serve, folder, name, socket)
    unfinished = announce.with_suffix(".unfinished")
    unfinished.write_text(str(ports["proxy"]))
    unfinished.replace(announce)
    watch(watched)


if __name__ == "__main__":
    main()
