"""Tokens of an identity provider: which are believed, and where their keys come from."""

import base64
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from duckmesh.errors import Denied, ErrorCode, Unavailable
from gateway.identity import Role
from gateway.key_sets import KeyFile, KeySet, KeyUrl, read_keys
from gateway.web_tokens import (
    TokenRules,
    WebTokens,
    looks_like_web_token,
    parse_role_map,
)
from tests.identity_provider import AUDIENCE, ISSUER, Provider, identity_provider
from tests.processes import until

RULES = TokenRules(issuer=ISSUER, audience=AUDIENCE)


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def shared() -> Iterator[Provider]:
    with identity_provider() as provider:
        provider.add("ec-1", "ES256")
        yield provider


@pytest.fixture(scope="module")
def tokens(shared: Provider) -> WebTokens:
    return WebTokens(RULES, KeySet(KeyUrl(shared.url)))


def part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def refusal(tokens: WebTokens, token: str) -> Denied:
    with pytest.raises(Denied) as caught:
        tokens.verify(token)
    assert caught.value.code is ErrorCode.UNAUTHORIZED
    return caught.value


@pytest.mark.parametrize("key_id", ["rsa-1", "ec-1"])
def test_a_signed_token_says_who_its_bearer_is(shared, tokens, key_id) -> None:
    ends = int(time.time()) + 60
    claims = tokens.verify(shared.token(key_id, exp=ends))
    assert (claims.tenant, claims.subject) == ("acme", "ada")
    assert claims.roles == {Role.QUERY_READER}
    assert claims.expires_at.timestamp() == ends


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://other.example.org/"},
        {"iss": ISSUER.rstrip("/")},
        {"aud": "another"},
        {"aud": []},
        {"exp": 1},
        {"exp": "soon"},
        {"exp": 10**30},
        {"nbf": 10**10},
        {"iat": 10**10},
        {"sub": ""},
        {"sub": 7},
        {"tenant": ""},
        {"tenant": ["acme"]},
        {"tenant": None},
    ],
    ids=str,
)
def test_a_token_that_says_another_thing_is_refused(shared, tokens, changed) -> None:
    refusal(tokens, shared.token(**changed))


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "exp", "tenant"])
def test_a_token_that_leaves_out_a_claim_is_refused(shared, tokens, claim) -> None:
    refusal(tokens, shared.token(without=(claim,)))


def test_no_signature_but_that_of_the_providers_private_key_is_believed(shared, tokens) -> None:
    good = shared.token()
    head, body, signature = good.split(".")
    public = shared.private["rsa-1"][0].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = jwt.decode(good, options={"verify_signature": False})
    stranger = Provider()
    symmetric = {"alg": "HS256", "kid": "rsa-1"}
    hashed = f"{part(symmetric)}.{body}"
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        hashed.encode(), pem
    )
    forged = {
        "none": f"{part({'alg': 'none', 'kid': 'rsa-1'})}.{body}.",
        "none with the signature": f"{part({'alg': 'none', 'kid': 'rsa-1'})}.{body}.{signature}",
        "the public key as a shared secret": (
            f"{hashed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
        ),
        "another key of that id": stranger.token(),
        "a key in the header": jwt.encode(
            claims,
            stranger.private["rsa-1"][0],
            algorithm="RS256",
            headers={"kid": "rsa-1", "jwk": stranger.public("rsa-1")},
        ),
        "a key id of another kind of key": f"{part({'alg': 'RS256', 'kid': 'ec-1'})}.{body}."
        f"{signature}",
        "a key id that is no text": f"{part({'alg': 'RS256', 'kid': 1})}.{body}.{signature}",
        "an algorithm that is not allowed": jwt.encode(
            claims, shared.private["rsa-1"][0], algorithm="RS512", headers={"kid": "rsa-1"}
        ),
        "another body": f"{head}.{part({**claims, 'tenant': 'other'})}.{signature}",
        "cut": good[:-8],
        "no signature": f"{head}.{body}.",
        "long": good + "A" * 20_000,
        "no JSON": f"eyJ.{body}.{signature}",
    }
    messages = {name: str(refusal(tokens, token)) for name, token in forged.items()}
    assert len(set(messages.values())) == 1, "a forger learns nothing from the refusal"


def test_times_may_be_off_by_the_leeway_and_no_more(shared) -> None:
    rules = TokenRules(issuer=ISSUER, audience=AUDIENCE, leeway=timedelta(seconds=300))
    lenient = WebTokens(rules, KeySet(KeyUrl(shared.url)))
    now = int(time.time())
    lenient.verify(shared.token(exp=now - 100, nbf=now + 100))
    refusal(lenient, shared.token(exp=now - 1000))
    refusal(lenient, shared.token(nbf=now + 1000))


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({"groups": ["analysts", "unknown"]}, {Role.QUERY_READER}),
        ({"groups": "etl analysts"}, {Role.QUERY_READER, Role.INGEST_WRITER}),
        ({"groups": ["ops_admin"]}, set()),
        ({"groups": [1, None, {}]}, set()),
        ({"groups": {"analysts": True}}, set()),
        ({}, set()),
    ],
    ids=["a list", "a text", "unmapped", "no texts", "an object", "nothing"],
)
def test_only_mapped_names_give_roles(shared, claims, roles) -> None:
    rules = TokenRules(
        issuer=ISSUER,
        audience=AUDIENCE,
        roles_claim="groups",
        role_of=parse_role_map("analysts=query_reader, etl = ingest_writer"),
    )
    mapped = WebTokens(rules, KeySet(KeyUrl(shared.url)))
    assert mapped.verify(shared.token(**claims)).roles == roles


def test_a_claim_is_named_in_full_or_by_its_way(shared) -> None:
    rules = TokenRules(
        issuer=ISSUER,
        audience=AUDIENCE,
        tenant_claim="https://example.org/tenant",
        roles_claim="realm_access.roles",
    )
    nested = {"https://example.org/tenant": "other", "realm_access": {"roles": ["ops_admin"]}}
    claims = WebTokens(rules, KeySet(KeyUrl(shared.url))).verify(shared.token(**nested))
    assert (claims.tenant, claims.roles) == ("other", {Role.OPS_ADMIN})


def test_a_key_that_the_provider_turned_to_is_believed_and_the_one_it_left_is_not() -> None:
    clock = Clock()
    with identity_provider() as provider:
        tokens = WebTokens(RULES, KeySet(KeyUrl(provider.url), monotonic=clock))
        before = provider.token()
        tokens.verify(before)
        provider.add("rsa-2", "RS256")
        del provider.private["rsa-1"]
        clock.seconds += 6
        tokens.verify(provider.token("rsa-2"))
        refusal(tokens, before)
        assert provider.requests == 2


def test_unknown_keys_cause_no_stream_of_fetches() -> None:
    with identity_provider() as provider, identity_provider() as stranger:
        tokens = WebTokens(RULES, KeySet(KeyUrl(provider.url), monotonic=Clock()))
        tokens.verify(provider.token())
        for n in range(20):
            stranger.private = {f"k{n}": stranger.private.popitem()[1]}
            refusal(tokens, stranger.token(f"k{n}"))
        assert provider.requests == 1


def test_known_keys_outlast_a_provider_that_is_away_for_an_hour() -> None:
    clock = Clock()
    with identity_provider() as provider:
        tokens = WebTokens(
            RULES,
            KeySet(KeyUrl(provider.url), timeout=timedelta(milliseconds=200), monotonic=clock),
        )
        tokens.verify(provider.token())
        provider.status = 500
        clock.seconds += 600
        tokens.verify(provider.token())
        until(lambda: provider.requests == 2)
        clock.seconds += 3600
        with pytest.raises(Unavailable) as caught:
            tokens.verify(provider.token())
        assert provider.url not in str(caught.value)


def test_a_provider_that_does_not_answer_holds_a_caller_for_the_timeout_at_most() -> None:
    with identity_provider() as provider:
        provider.silent.set()
        tokens = WebTokens(RULES, KeySet(KeyUrl(provider.url), timeout=timedelta(milliseconds=200)))
        began = time.monotonic()
        with pytest.raises(Unavailable):
            tokens.verify(provider.token())
        assert time.monotonic() - began < 20, "a fetch ends by itself only after a minute here"


def test_a_file_of_keys_serves_where_no_network_is_and_is_read_anew(tmp_path: Path) -> None:
    clock, provider, file = Clock(), Provider(), tmp_path / "keys.json"
    tokens = WebTokens(RULES, KeySet(KeyFile(file), monotonic=clock))
    with pytest.raises(Unavailable):
        tokens.verify(provider.token())
    file.write_bytes(provider.key_set())
    clock.seconds += 6
    tokens.verify(provider.token())
    provider.add("rsa-2", "RS256")
    file.write_bytes(provider.key_set())
    clock.seconds += 6
    tokens.verify(provider.token("rsa-2"))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"keys": 1}', b"\xff", b"[" * 100_000, b" " * 300_000]
)
def test_what_is_no_key_set_is_no_key_set(content: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read_keys(content)


def test_symmetric_keys_and_keys_for_encryption_are_left_out() -> None:
    public = Provider().public("rsa-1")
    keys = [{"kty": "oct", "k": "AAAA", "kid": "s"}, {**public, "use": "enc"}, 7, public]
    assert read_keys(json.dumps({"keys": keys}).encode()) == (public,)


def test_only_tokens_look_like_tokens(shared: Provider) -> None:
    assert looks_like_web_token(shared.token())
    assert not looks_like_web_token("dm_0123456789ab_eyJ.x.y")
    assert not looks_like_web_token("eyJ.x")


@pytest.mark.parametrize("text", ["analysts", "=query_reader", "a=boss"])
def test_a_role_map_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - Role's own
        parse_role_map(text)


@pytest.mark.parametrize("algorithms", [{"none"}, {"HS256"}, {"RS256", "HS512"}, set()])
def test_algorithms_without_a_private_key_cannot_be_allowed(algorithms) -> None:
    rules = TokenRules(issuer=ISSUER, audience=AUDIENCE, algorithms=frozenset(algorithms))
    with pytest.raises(ValueError, match="algorithms"):
        WebTokens(rules, KeySet(KeyFile(Path("none"))))
