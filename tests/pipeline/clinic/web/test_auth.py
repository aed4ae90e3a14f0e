"""Tests of tokens and sessions: holder, role, expiry, and what is stored of them."""

from datetime import timedelta

import pytest

from models.refusal import Refusal
from pipeline.clinic.database import FILE, now, stamp
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web.auth import Tokens


@pytest.fixture
def tokens(clinic: Clinic) -> Tokens:
    return Tokens(clinic.folder)


def wrong(tokens: Tokens, secret: str) -> bool:
    with pytest.raises(Refusal) as caught:
        tokens.caller(secret)
    return caught.value.code == "E_TOKEN"


def let_time_pass(clinic: Clinic, table: str) -> None:
    with clinic.store() as store, store.database.transaction() as db:
        db.execute(f"UPDATE {table} SET ends_at = ?", (stamp(now() - timedelta(seconds=1)),))


def test_token_identifies_its_holder_and_role(tokens: Tokens) -> None:
    caller = tokens.caller(tokens.make("ward 7", "score", by="test"))
    assert (caller.name, caller.role, caller.ends_at, caller.by_cookie) == ("ward 7", "score", None, False)
    assert caller.may("read") and caller.may("score") and not caller.may("admin")


def test_only_hashes_of_tokens_and_sessions_are_stored(tokens: Tokens, clinic: Clinic) -> None:
    secret = tokens.make("ward", "read", by="test")
    session, _ = tokens.sign_in(secret, hours=1)
    for path in clinic.folder.glob(f"{FILE}*"):
        assert secret.encode() not in path.read_bytes()
        assert session.encode() not in path.read_bytes()


def test_invalid_token_is_refused(tokens: Tokens) -> None:
    secret = tokens.make("ward", "read", by="test")
    for other in ("", secret[:-1], secret + "a", secret.upper(), "\ud800", "é"):
        assert wrong(tokens, other)


def test_token_expires(tokens: Tokens, clinic: Clinic) -> None:
    secret = tokens.make("ward", "read", by="test", days=1)
    ends_at = tokens.caller(secret).ends_at
    assert ends_at and timedelta(hours=23) < ends_at - now() < timedelta(hours=25)
    let_time_pass(clinic, "tokens")
    assert wrong(tokens, secret)


def test_revoking_a_token_ends_its_sessions_immediately(tokens: Tokens) -> None:
    secret = tokens.make("ward", "admin", by="test")
    session, _ = tokens.sign_in(secret, hours=1)
    assert tokens.session(session).name == "ward"
    tokens.revoke("ward", by="test")
    assert wrong(tokens, secret)
    with pytest.raises(Refusal, match="E_TOKEN"):
        tokens.session(session)
    with pytest.raises(Refusal, match="E_TOKEN"):
        tokens.sign_in(secret, hours=1)
    with pytest.raises(Refusal, match="E_NO_SUCH_TOKEN"):
        tokens.revoke("wart", by="test")


def test_session_expires_no_later_than_its_token(tokens: Tokens, clinic: Clinic) -> None:
    session, caller = tokens.sign_in(tokens.make("ward", "read", by="test", days=1), hours=100)
    assert caller.ends_at and caller.ends_at - now() < timedelta(hours=25)
    assert tokens.open_sessions() == 1
    let_time_pass(clinic, "sessions")
    assert tokens.open_sessions() == 0
    with pytest.raises(Refusal, match="E_TOKEN"):
        tokens.session(session)


def test_signing_out_ends_the_session(tokens: Tokens) -> None:
    session, _ = tokens.sign_in(tokens.make("ward", "read", by="test"), hours=1)
    tokens.sign_out(session)
    with pytest.raises(Refusal, match="E_TOKEN"):
        tokens.session(session)


def test_first_sign_in_token_works_once_and_only_for_browsers(tokens: Tokens) -> None:
    secret = tokens.make("first", "admin", by="test", once=True)
    assert wrong(tokens, secret)
    session, caller = tokens.sign_in(secret, hours=12)
    assert caller.role == "admin"
    with pytest.raises(Refusal, match="E_TOKEN"):
        tokens.sign_in(secret, hours=12)
    ends_at = tokens.session(session).ends_at
    assert ends_at and ends_at - now() > timedelta(hours=11)


def test_sign_in_is_audited_without_the_token(tokens: Tokens, clinic: Clinic) -> None:
    secret = tokens.make("night desk", "read", by="test")
    session, _ = tokens.sign_in(secret, hours=1)
    tokens.session(session)
    tokens.caller(secret)
    with pytest.raises(Refusal, match="E_TOKEN"):
        tokens.sign_in(secret[:-1], hours=1)
    with clinic.store() as store:
        records = store.audit.records()
    assert [(each.who, each.action) for each in records] == [("test", "token"), ("night desk", "sign_in")]
    assert not any(hidden in str(records) for hidden in (secret, session))


def test_token_names_are_validated_and_never_reused(tokens: Tokens) -> None:
    tokens.make("ward", "read", by="test")
    tokens.revoke("ward", by="test")
    for name in ("ward", "", " ward", "a" * 61, "ward\n", "<b>", "ward\u202e"):
        with pytest.raises(Refusal, match="E_TOKEN_NAME"):
            tokens.make(name, "read", by="test")
    tokens.make("Übelacker 2", "read", by="test")
    assert [token.name for token in tokens.all()] == ["ward", "Übelacker 2"]


def test_creation_and_revocation_of_tokens_are_audited(tokens: Tokens, clinic: Clinic) -> None:
    tokens.make("ward", "score", by="me")
    tokens.revoke("ward", by="you")
    with clinic.store() as store:
        made, revoked = store.audit.records()
    assert (made.who, made.action, made.output) == ("me", "token", {"name": "ward", "role": "score", "person": ""})
    assert (revoked.who, revoked.action, revoked.output) == ("you", "revoke", {"name": "ward"})
