"""Sign videos with C2PA content credentials (https://c2pa.org), by the package c2pa-python.

A signed manifest states how a video was made, and reveals later changes of the file. It is only as
trustworthy as its certificate, so talker contains none: the user provides it.
"""

import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from talker.core.config import validated
from talker.errors import UserError

MEDIA_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime"}
"""Media types of the formats that can be signed, by suffix."""
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
"""Signature algorithms of the elliptic curves that C2PA allows."""


@validated
class Signature:
    """The certificate that videos are signed with."""

    certificate: Path | None = None
    """PEM file with a certificate for C2PA content credentials, followed by the certificates of its
    issuers. If it is given, the video (.mp4 or .mov) contains a signed statement that it is
    synthetic. Signing requires `pip install '.[c2pa]'`. By default, the statement is not signed."""
    key: Path | None = None
    """PEM file with the private key of the certificate, without a password."""

    def require(self, path: Path) -> None:
        """Check that a video with this path can be signed, if there is a certificate.

        Raises:
            UserError: the certificate or the key is missing or unreadable, or the format of the
                video cannot be signed.
            ImportError: c2pa-python is not installed.
        """
        if self.certificate is None and self.key is None:
            return
        if path.suffix.lower() not in MEDIA_TYPES:
            raise UserError(
                f"{path} has a format that cannot be signed. Use {' or '.join(MEDIA_TYPES)}, or "
                "remove the options `certificate` and `key`."
            )
        if fault := self.missing_file():
            raise UserError(fault)
        self._signer().close()

    def missing_file(self) -> str | None:
        """Return which of the two files is missing, or None; without both, nothing is signed."""
        files = {"certificate": self.certificate, "key": self.key}
        given = {option: path for option, path in files.items() if path is not None}
        if len(given) == 1:
            return "Set the options `signature.certificate` and `signature.key` together."
        for option, path in given.items():
            if not path.is_file():
                return (
                    f"The option `signature.{option}` is {path}, which is not a file. Give the "
                    "path of a PEM file."
                )
        return None

    def sign(self, path: Path, suffix: str, manifest: dict[str, Any]) -> None:
        """Replace a complete video by a signed copy, if there is a certificate.

        Args:
            path: video, a file with any name.
            suffix: suffix that tells the format of the video.
            manifest: manifest definition of the C2PA SDK.

        Raises:
            UserError: the certificate does not conform to C2PA, or does not fit the key.
        """
        if self.certificate is None:
            return
        c2pa: Any = import_module("c2pa")
        with tempfile.TemporaryDirectory(prefix=".signed.talker-", dir=path.parent) as folder:
            signed = Path(folder, "video")
            try:
                with (
                    self._signer() as signer,
                    c2pa.Builder(json.dumps(manifest)) as builder,
                    path.open("rb") as source,
                    signed.open("w+b") as target,
                ):
                    builder.sign(signer, MEDIA_TYPES[suffix], source, target)
            except c2pa.C2paError as error:
                raise UserError(
                    f"The video cannot be signed with {self.certificate} ({error}). Use a "
                    "certificate for C2PA content credentials and its own key."
                ) from error
            signed.replace(path)

    def _signer(self) -> Any:
        """Return a signer of c2pa; UserError if the certificate or the key cannot be used."""
        assert self.certificate is not None and self.key is not None
        c2pa: Any = import_module("c2pa")
        certificate, key = self.certificate.read_bytes(), self.key.read_bytes()
        try:
            return c2pa.Signer.from_info(
                c2pa.C2paSignerInfo(_algorithm(key), certificate, key, None)
            )
        except (c2pa.C2paError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.certificate} and {self.key} cannot be used to sign videos ({error}). They "
                "must be a certificate chain and its private key without a password, in PEM format."
            ) from error


def _algorithm(key: bytes) -> str:
    """Return the C2PA name of the signature algorithm of a private key; ValueError if none fits."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = load_pem_private_key(key, None)
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in CURVES:
        return CURVES[private.curve.name]
    raise ValueError("C2PA does not support signatures with keys of this type")
