from __future__ import annotations

import stat
from pathlib import Path

import pytest
import zmq
from full_disk import full_disk

from bert_serving.client.keys import (
    Certificate,
    KeyFileError,
    connection_keys,
    public_key,
    read_certificate,
    read_secret,
)
from bert_serving.client.unreachable import (
    ASKS_FOR_KEYS,
    HAS_NO_KEYS,
    NOT_OURS,
    SILENT,
    UNKNOWN_KEY,
    WRONG_SERVER_KEY,
    explain_handshake,
    explain_mechanism,
)
from bert_serving.server.certificates import CertificateError, Pair, pair_files, write_pair
from bert_serving.server.cli import keygen

SOME_KEY = "0123456789abcdefghijABCDEFGHIJ.:+=^!/*?&"
TOO_LARGE = "#" * 40  # five of these characters stand for more than 32 bits


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    files = pair_files("one", tmp_path, tmp_path / "public")
    write_pair("one", files)
    return files


def test_what_is_written_can_be_read(pair: Pair) -> None:
    certificate = read_secret(pair.secret)
    assert certificate.secret is not None
    assert zmq.curve_public(certificate.secret) == certificate.public
    assert read_certificate(pair.public) == Certificate(certificate.public)


def test_a_secret_is_for_its_owner_alone(pair: Pair) -> None:
    assert stat.S_IMODE(pair.secret.stat().st_mode) == 0o600
    secret = read_secret(pair.secret).secret
    assert secret is not None
    assert secret not in pair.public.read_bytes()


def test_a_secret_that_anybody_can_read_is_refused(pair: Pair) -> None:
    pair.secret.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_secret(pair.secret)
    pair.secret.chmod(0o640)
    assert read_secret(pair.secret)


def test_no_file_is_replaced(pair: Pair) -> None:
    before = pair.secret.read_bytes(), pair.public.read_bytes()
    with pytest.raises(CertificateError, match="there already"):
        write_pair("one", pair)
    pair.secret.unlink()
    with pytest.raises(CertificateError, match="there already"):
        write_pair("one", pair)
    assert not pair.secret.exists()
    assert pair.public.read_bytes() == before[1]


def test_nothing_is_left_where_there_is_no_room(tmp_path: Path) -> None:
    files = pair_files("one", tmp_path, tmp_path / "public")
    with full_disk(), pytest.raises(CertificateError, match=f"{tmp_path} cannot be written"):
        write_pair("one", files)
    write_pair("one", files)
    assert read_secret(files.secret)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-rf", "a b", "x" * 65])
def test_a_name_must_do_for_a_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="no name for a key"):
        pair_files(name, tmp_path, tmp_path)


def test_keys_never_show_their_secret(pair: Pair) -> None:
    keys = connection_keys(SOME_KEY, pair.secret)
    assert keys is not None
    assert keys.server == SOME_KEY.encode()
    assert keys.secret.decode() not in repr(keys) + repr(read_secret(pair.secret))


def test_a_public_key_is_a_file_or_its_characters(pair: Pair) -> None:
    key = read_certificate(pair.public).public
    assert (
        public_key(pair.public) == public_key(str(pair.public)) == public_key(key.decode()) == key
    )


def test_both_keys_are_given_or_none(pair: Pair) -> None:
    assert connection_keys(None, None) is None
    with pytest.raises(KeyFileError, match="needs server_key"):
        connection_keys(None, pair.secret)
    with pytest.raises(KeyFileError, match="needs client_cert"):
        connection_keys(SOME_KEY, None)


def test_characters_that_stand_for_no_key_are_taken_for_a_file(pair: Pair) -> None:
    assert public_key("%nSc0" * 8) == b"%nSc0" * 8  # the largest
    with pytest.raises(KeyFileError, match="cannot be read"):
        connection_keys(TOO_LARGE, pair.secret)


def test_a_public_file_is_no_client_cert(pair: Pair) -> None:
    with pytest.raises(KeyFileError, match=r"has no secret key.*\.key_secret"):
        connection_keys(SOME_KEY, pair.public)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "public-key = 'short'",
        f'secret-key = "{SOME_KEY}"',
        f'public-key = "{SOME_KEY}"\nsecret-key = "short"',
        f'public-key = "{TOO_LARGE}"',
        f'public-key = "{SOME_KEY}"\nsecret-key = "{TOO_LARGE}"',
        f'public-key = "{SOME_KEY}"\n' + "#" * 20_000,
        "\0" * 100,
    ],
)
def test_a_file_without_a_key_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "x.key"
    file.write_text(content)
    with pytest.raises(KeyFileError, match="no key file"):
        read_certificate(file)


def test_two_keys_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    (public, _), (_, secret) = zmq.curve_keypair(), zmq.curve_keypair()
    file = tmp_path / "x.key_secret"
    file.write_text(f'public-key = "{public.decode()}"\nsecret-key = "{secret.decode()}"')
    with pytest.raises(KeyFileError, match="do not belong together"):
        read_certificate(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"nothing\.key cannot be read"):
        read_certificate(tmp_path / "nothing.key")


def test_zeromqs_own_certificates_are_read(tmp_path: Path) -> None:
    auth = pytest.importorskip("zmq.auth")
    public, secret = auth.create_certificates(tmp_path, "theirs", metadata={"mail": "a@b"})
    Path(secret).chmod(0o600)
    theirs = auth.load_certificate(secret)
    assert read_secret(secret) == Certificate(*theirs)
    assert read_certificate(public).public == theirs[0]


def test_ours_are_read_by_zeromqs_own(pair: Pair) -> None:
    auth = pytest.importorskip("zmq.auth")
    ours = read_secret(pair.secret)
    assert auth.load_certificate(pair.secret) == (ours.public, ours.secret)


def test_keygen_writes_a_set_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert keygen.main(["-dir", str(folder), "server"]) == 0
    said = capsys.readouterr().out
    assert f"-server_key {folder}/server.key_secret -client_keys {folder}/clients" in said
    assert keygen.main(["-dir", str(folder), "client", "alice"]) == 0
    assert 'client_cert="alice.key_secret"' in capsys.readouterr().out
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"server.key", "server.key_secret", "alice.key_secret", "clients/alice.key"}


def test_keygen_says_where_an_administrators_key_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keygen.main(["-dir", str(tmp_path), "admin", "root"]) == 0
    assert f"-admin_keys {tmp_path}/admins" in capsys.readouterr().out
    assert read_certificate(tmp_path / "admins" / "root.key").secret is None
    assert not list((tmp_path / "clients").iterdir())


def test_keygen_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["-dir", str(tmp_path), "server"]
    assert keygen.main(command) == 0
    before = (tmp_path / "server.key_secret").read_bytes()
    assert keygen.main(command) == 1
    assert "there already" in capsys.readouterr().err
    assert (tmp_path / "server.key_secret").read_bytes() == before


def greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0")


@pytest.mark.parametrize(
    ("said", "has_keys", "words"),
    [
        (b"", False, NOT_OURS),
        (b"HTTP/1.0 400 Bad Request\r\n", True, NOT_OURS),
        (b"\xff", True, NOT_OURS),
        (greeting(b"PLAIN"), False, NOT_OURS),
        (greeting(b"CURVE"), False, ASKS_FOR_KEYS),
        (greeting(b"NULL"), True, HAS_NO_KEYS),
        (greeting(b"CURVE"), True, None),
        (greeting(b"NULL"), False, None),
    ],
)
def test_what_a_greeting_says_is_put_into_words(
    said: bytes, has_keys: bool, words: str | None
) -> None:
    assert explain_mechanism(said, has_keys=has_keys) == words


@pytest.mark.parametrize(
    ("event", "has_keys", "words"),
    [
        (0, False, NOT_OURS),
        (0, True, NOT_OURS),
        (zmq.EVENT_HANDSHAKE_SUCCEEDED, True, SILENT),
        (zmq.EVENT_HANDSHAKE_FAILED_AUTH, True, UNKNOWN_KEY),
        (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, False, NOT_OURS),
        (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, False, NOT_OURS),
        (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, True, WRONG_SERVER_KEY),
    ],
)
def test_what_a_handshake_says_is_put_into_words(event: int, has_keys: bool, words: str) -> None:
    assert explain_handshake(event, has_keys=has_keys) == words
