"""Verification of an ID token (OpenID Connect Core 1.0, section 3.1.3.7).

PyJWT checks signature, issuer, audience and times. The algorithms are a fixed list of asymmetric ones, so neither
"none" nor a secret that is made from a public key is ever tried, and a key is used only with algorithms of its type.
"""

import hmac
from collections.abc import Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from models.refusal import Refusal
from pipeline.identity.reasons import SIGN_IN_KEY, SIGN_IN_TOKEN

Claims = dict[str, Any]
LEEWAY_SECONDS = 60  # difference of the clocks
# By algorithm: the type and curve of its keys.
ALGORITHMS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    **{"ES256": ("EC", "P-256"), "ES384": ("EC", "P-384"), "ES512": ("EC", "P-521"), "EdDSA": ("OKP", "Ed25519")},
}
_REQUIRED = ["iss", "sub", "aud", "exp", "iat", "nonce"]
_LEAST_RSA_BITS = 2048
_LONGEST_TOKEN = 100_000


def header_of(token: str) -> tuple[str, str | None]:
    """Return algorithm and key id of a token, unverified. Raises Refusal E_SIGN_IN_TOKEN."""
    try:
        if len(token) > _LONGEST_TOKEN:
            raise jwt.InvalidTokenError("it is too long")
        header = jwt.get_unverified_header(token)
    except jwt.PyJWTError as error:
        raise _refusal(error) from None
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise _refusal("its algorithm is not accepted")
    return algorithm, key_id if isinstance(key_id, str) else None


def key_for(keys: Sequence[Any], algorithm: str, key_id: str | None) -> Any:
    """Return the public key that the token must be signed with.

    Without a key id, exactly one key must fit. Raises Refusal E_SIGN_IN_KEY if none fits, E_SIGN_IN_TOKEN if the key
    cannot be used.
    """
    fitting = [key for key in keys if isinstance(key, dict) and _fits(key, algorithm)]
    named = [key for key in fitting if key_id is None or key.get("kid") == key_id]
    if len(named) != 1:
        raise Refusal(SIGN_IN_KEY)
    try:
        key = jwt.PyJWK(named[0], algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise _refusal(error) from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        raise _refusal("its RSA key is too short")
    return key


def verify(token: str, key: Any, *, issuer: str, client_id: str, nonce: str, begun_at: float) -> Claims:
    """Return the claims of a valid token. `begun_at`: when this sign-in began, in seconds since 1970.

    Raises Refusal E_SIGN_IN_TOKEN; `private` says which check failed, without a claim's value.
    """
    algorithm, _ = header_of(token)
    try:
        claims: Claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=client_id,
            issuer=issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": _REQUIRED},
        )
        issued_at = float(claims["iat"])
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise _refusal(error) from None
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if claims.get("azp", None if several else client_id) != client_id:
        raise _refusal("azp names another client")
    given = claims["nonce"]
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), nonce.encode()):
        raise _refusal("the nonce is another one")
    if issued_at < begun_at - LEEWAY_SECONDS:
        raise _refusal("it was issued before this sign-in began")
    if not isinstance(claims["sub"], str) or not claims["sub"]:
        raise _refusal("sub is no text")
    return claims


def _fits(key: Claims, algorithm: str) -> bool:
    """Whether a public key is for signatures of this algorithm."""
    kind, curve = ALGORITHMS[algorithm]
    is_of_kind = key.get("kty") == kind and (curve is None or key.get("crv") == curve)
    return is_of_kind and key.get("use", "sig") == "sig" and key.get("alg", algorithm) == algorithm


def _refusal(why: object) -> Refusal:
    says = type(why).__name__ if isinstance(why, Exception) else why
    return Refusal(SIGN_IN_TOKEN, private=f"ID token: {says}")
