"""Signed videos, read back by the reader of the C2PA SDK, with a certificate made for the test."""

import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_disclosure import SOURCE, TYPE, xmp_of_boxes

from talker.core.boundary import explain
from talker.errors import UserError
from talker.media.disclosure import Disclosure
from talker.media.signature import Signature
from talker.media.video_writer import video_writer

FRAMES = [np.full((48, 64, 3), 40 * i, np.uint8) for i in range(5)]


@pytest.fixture(scope="module")
def c2pa() -> Any:
    return pytest.importorskip(
        "c2pa", reason="c2pa-python is not installed (`pip install '.[c2pa]'`, part of `dev`)"
    )


def certificate(folder: Path, kind: str = "EC") -> Signature:
    """Write a key, and its certificate with that of an issuer, as C2PA requires them."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    make: dict[str, Callable[[], Any]] = {
        "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "Bitcoin": lambda: ec.generate_private_key(ec.SECP256K1()),
    }
    root, key = make["EC"](), make[kind]()
    now, month = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=30)
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)
    chain = b""
    for name, public, issuer in (("signer", key, False), ("root", root, True)):
        builder = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]),
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            public.public_key(),
            x509.random_serial_number(),
            now - month,
            now + month,
        )
        for extension, critical in (
            (x509.BasicConstraints(issuer, None), True),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), False),
            (
                x509.KeyUsage(
                    digital_signature=not issuer, key_cert_sign=issuer, crl_sign=issuer, **usage
                ),
                True,
            ),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), not issuer),
        ):
            builder = builder.add_extension(extension, critical)
        signed = builder.sign(root, hashes.SHA256())
        chain += signed.public_bytes(serialization.Encoding.PEM)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    folder.mkdir(exist_ok=True)
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(key.private_bytes(*form, serialization.NoEncryption()))
    return Signature(folder / "chain.pem", folder / "key.pem")


def write(path: Path, signature: Signature) -> Path:
    disclosure = Disclosure("me.avatar", "ab12", '<by "letter"> é', signature=signature)
    with video_writer(path, disclosure=disclosure) as append:
        for frame in FRAMES:
            append(frame)
    return path


@pytest.mark.parametrize(("suffix", "kind"), [(".mp4", "EC"), (".mov", "RSA"), (".MP4", "Ed25519")])
def test_a_signed_video_states_what_it_is(
    suffix: str, kind: str, c2pa: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / f"me{suffix}", certificate(tmp_path / "keys", kind))
    with path.open("rb") as file, c2pa.Reader("video/mp4", file) as reader:
        assert reader.get_validation_state() == "Valid"
        found = json.loads(reader.json())
    (manifest,) = found["manifests"].values()
    (actions,) = [one for one in manifest["assertions"] if one["label"] == "c2pa.actions.v2"]
    (created,) = actions["data"]["actions"]
    assert created["action"] == "c2pa.created" and created["digitalSourceType"] == TYPE
    assert created["softwareAgent"]["name"] == "talker"
    facts = {"avatar": "me.avatar", "sha256": "ab12", "consent": '<by "letter"> é'}
    assert created["parameters"] == facts
    assert manifest["signature_info"]["common_name"] == "signer"
    assert xmp_of_boxes(path.read_bytes())[SOURCE] == TYPE  # the other metadata are kept
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == len(FRAMES)
    assert not list(tmp_path.glob(".signed*"))


def test_a_changed_video_is_not_valid(c2pa: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "me.mp4", certificate(tmp_path))
    content = bytearray(path.read_bytes())
    content[content.rindex(b"mdat") + 40] ^= 1
    path.write_bytes(content)
    with c2pa.Reader(path) as reader:
        assert reader.get_validation_state() == "Invalid"
        assert "assertion.bmffHash.mismatch" in reader.json()


def test_a_certificate_that_does_not_fit_is_one_sentence(c2pa: Any, tmp_path: Path) -> None:
    own, other = certificate(tmp_path / "a"), certificate(tmp_path / "b")
    (tmp_path / "text").write_text("no key")
    refused = [
        (Signature(own.certificate, other.key), "cannot be signed with"),
        (Signature(own.key, own.key), "sign"),
        (Signature(own.certificate, tmp_path / "text"), "cannot be used to sign videos"),
        (
            certificate(tmp_path / "c", "Bitcoin"),
            "does not support signatures with keys of this type",
        ),
    ]
    for signature, message in refused:
        with pytest.raises(UserError, match=message):
            write(tmp_path / "me.mp4", signature)
        assert not (tmp_path / "me.mp4").exists() and not list(tmp_path.glob(".signed*"))


def test_what_cannot_be_signed_is_refused_before_rendering(tmp_path: Path) -> None:
    given = Signature(tmp_path / "chain.pem", tmp_path / "key.pem")
    for name in ("me.webm", "me"):
        with pytest.raises(UserError, match=r"Use \.mp4 or \.mov"):
            write(tmp_path / name, given)
    for half in (Signature(given.certificate), Signature(None, given.key)):
        with pytest.raises(UserError, match="together"):
            write(tmp_path / "me.mp4", half)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    given = Signature(tmp_path / "chain.pem", tmp_path / "key.pem")
    assert Signature().missing_file() is None
    (tmp_path / "chain.pem").touch()
    assert given.missing_file() == (
        f"The option `signature.key` is {tmp_path}/key.pem, which is not a file. Give the path of "
        "a PEM file."
    )
    (tmp_path / "key.pem").touch()
    assert given.missing_file() is None


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    given = Signature(tmp_path / "chain.pem", tmp_path / "key.pem")
    for file in (given.certificate, given.key):
        assert file is not None
        file.touch()
    with pytest.raises(ImportError) as raised:
        write(tmp_path / "me.mp4", given)
    assert "pip install '.[c2pa]'" in (explain(raised.value) or "")
    assert len(list(tmp_path.iterdir())) == 2
