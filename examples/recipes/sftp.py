"""SFTP with paramiko: threads upload files over a few SSH connections.

``python examples/recipes/sftp.py USER@HOST:PORT KEY_FILE KNOWN_HOSTS DIRECTORY FILE...``
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # from a checkout, too
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paramiko import SFTPClient, SSHClient, SSHException

from pooling import Pool


def sftp_pool(address: str, key: str, known_hosts: str, **settings: Any) -> Pool[SFTPClient]:
    """Return a pool of SFTP clients, each on a connection of its own: one connection's channels share a window."""
    user, _, place = address.partition("@")
    host, _, port = place.partition(":")

    def connect() -> SFTPClient:
        ssh = SSHClient()
        ssh.load_host_keys(known_hosts)
        ssh.connect(host, int(port or 22), user, key_filename=key, timeout=10, allow_agent=False, look_for_keys=False)
        sftp = ssh.open_sftp()
        sftp.get_channel().settimeout(30)  # of each read and write; the default is none
        sftp.ssh = ssh  # keeps it open
        return sftp

    def is_broken(sftp: SFTPClient, error: BaseException) -> bool:
        # paramiko raises a plain OSError for "Socket is closed", and a FileNotFoundError for a missing file.
        return isinstance(error, (EOFError, SSHException)) or sftp.get_channel().closed

    return Pool(
        connect, close=lambda sftp: sftp.ssh.close(), validate=lambda sftp: bool(sftp.normalize(".")),
        reset=lambda sftp: sftp.chdir(None), is_broken=is_broken, name="sftp", **settings,
    )  # fmt: skip


def main() -> None:
    """Upload the files, and print their sizes on the server."""
    address, key, known_hosts, directory, *files = sys.argv[1:]
    with sftp_pool(address, key, known_hosts, max_size=2) as pool, ThreadPoolExecutor(8) as threads:

        def upload(file: str) -> int:
            with pool.acquire() as sftp:
                sftp.chdir(directory)
                return int(sftp.put(file, Path(file).name).st_size or 0)

        for file, size in zip(files, threads.map(upload, files)):
            print(f"{Path(file).name}: {size} bytes")
        print(f"{pool.metrics.snapshot().created} connections")


if __name__ == "__main__":
    main()
