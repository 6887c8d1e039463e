"""A small identity provider: keys, tokens signed with them, and the key set over real HTTP."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://id.example.org/"
AUDIENCE = "duckmesh"


class Provider:
    """Signs tokens and publishes its public keys. While `silent` it answers no request."""

    def __init__(self) -> None:
        self.private: dict[str, tuple[Any, str]] = {}
        self.requests = 0
        self.silent = threading.Event()
        self.ended = threading.Event()
        self.status = 200
        self.url = ""
        self.add("rsa-1", "RS256")

    def add(self, key_id: str, algorithm: str) -> None:
        key: Any = (
            ec.generate_private_key(ec.SECP256R1())
            if algorithm.startswith("ES")
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )
        self.private[key_id] = (key, algorithm)

    def public(self, key_id: str) -> dict[str, Any]:
        key, algorithm = self.private[key_id]
        kind: Any = ECAlgorithm if algorithm.startswith("ES") else RSAAlgorithm
        found: dict[str, Any] = json.loads(kind.to_jwk(key.public_key()))
        return {**found, "kid": key_id, "use": "sig"}

    def key_set(self) -> bytes:
        return json.dumps({"keys": [self.public(key_id) for key_id in self.private]}).encode()

    def token(self, key_id: str = "rsa-1", *, without: tuple[str, ...] = (), **more: Any) -> str:
        """A token of ada at acme with every right to read, changed as asked."""
        key, algorithm = self.private[key_id]
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ada",
            "exp": int(time.time()) + 600,
            "tenant": "acme",
            "roles": ["query_reader"],
            **more,
        }
        kept = {name: value for name, value in claims.items() if name not in without}
        return jwt.encode(kept, key, algorithm=algorithm, headers={"kid": key_id})


@contextmanager
def identity_provider() -> Iterator[Provider]:
    """A provider that answers at its `url`, on loopback."""
    provider = Provider()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.requests += 1
            if provider.silent.is_set():
                provider.ended.wait(60)
                return
            content = provider.key_set()
            self.send_response(provider.status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    provider.url = f"http://127.0.0.1:{server.server_port}/keys"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="provider")
    thread.start()
    try:
        yield provider
    finally:
        provider.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
