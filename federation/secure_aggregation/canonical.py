"""One way to write a message as bytes, so that every hospital signs and hashes the same."""

import base64
import binascii
import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, PlainSerializer, StringConstraints

from federation.system.digests import SHA256

Digest = Annotated[str, StringConstraints(pattern=rf"^{SHA256.pattern}$")]


def _decoded(value: Any) -> Any:
    """Decode base64 text; only the one text that encodes these bytes is valid."""
    if not isinstance(value, str):
        return value
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64") from error
    if base64.b64encode(content).decode() != value:
        raise ValueError("not canonical base64")
    return content


def _of(length: int) -> tuple[BeforeValidator, PlainSerializer]:
    def checked(value: Any) -> Any:
        content = _decoded(value)
        if not isinstance(content, bytes) or len(content) != length:
            raise ValueError(f"{length} bytes are expected")
        return content

    return BeforeValidator(checked), PlainSerializer(lambda value: base64.b64encode(value).decode(), when_used="json")


Key = Annotated[bytes, *_of(32)]
Signature = Annotated[bytes, *_of(64)]
Share = Annotated[bytes, *_of(33)]
SealedShares = Annotated[bytes, *_of(12 + 66 + 16)]  # nonce, two shares, tag


def canonical(content: BaseModel | Any) -> bytes:
    """Return the canonical JSON of a model or of JSON values: sorted keys, no spaces, ASCII."""
    value = content.model_dump(mode="json") if isinstance(content, BaseModel) else content
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(purpose: str, content: BaseModel | Any) -> str:
    """Return the SHA-256 of canonical JSON, bound to its purpose."""
    return hashlib.sha256(f"fedthorax secagg 1 {purpose}\0".encode() + canonical(content)).hexdigest()
