"""Keys for a test's server and clients, as an operator would lay them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_serving.server.certificates import pair_files, write_pair


@dataclass(frozen=True)
class KeyFiles:
    """A folder with a server's key pair, and those of clients."""

    folder: Path

    @property
    def options(self) -> tuple[str, ...]:
        """What stands on the server's command line."""
        secret, clients = self.folder / "server.key_secret", self.folder / "clients"
        return ("-server_key", str(secret), "-client_keys", str(clients))

    @property
    def admin_options(self) -> tuple[str, ...]:
        """What stands there beside them for a server with administrators."""
        return ("-admin_keys", str(self.folder / "admins"))

    @property
    def server_key(self) -> str:
        """The file with the server's public key."""
        return str(self.folder / "server.key")

    def public(self, name: str) -> Path:
        """The file that lets a client in."""
        return self.folder / "clients" / f"{name}.key"

    def admin(self, name: str) -> Path:
        """The file that makes one an administrator."""
        return self.folder / "admins" / f"{name}.key"

    def add_admin(self, name: str) -> dict[str, Any]:
        """Make an administrator's keys; returns what they are to be told."""
        files = pair_files(name, self.folder, self.folder / "admins")
        write_pair(name, files)
        return {"server_key": self.server_key, "client_cert": str(files.secret)}

    def add(self, name: str, *, is_allowed: bool = True) -> dict[str, Any]:
        """Make a client's keys; returns what it is to be told."""
        files = pair_files(name, self.folder, self.folder / "clients")
        write_pair(name, files)
        if not is_allowed:
            files.public.rename(self.folder / files.public.name)
        return {"server_key": self.server_key, "client_cert": str(files.secret)}

    def secrets(self) -> list[str]:
        """Every secret key, as text."""
        files = self.folder.glob("*.key_secret")
        return [file.read_text().split('"')[3] for file in files]


def new_keys(folder: Path) -> KeyFiles:
    """Return the keys of a server that lets nobody in yet."""
    write_pair("server", pair_files("server", folder, folder))
    for name in ("clients", "admins"):
        (folder / name).mkdir()
    return KeyFiles(folder)
