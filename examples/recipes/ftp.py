"""FTP with the standard library: threads download files over a few connections.

``python examples/recipes/ftp.py USER:PASSWORD@HOST:PORT FILE...``
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from ftplib import FTP, error_temp
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # from a checkout, too
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from pooling import Pool


def ftp_pool(address: str, **settings: Any) -> Pool[FTP]:
    """Return a pool of connections that are logged in. Servers often allow few for each user: set ``max_size``."""
    login, _, place = address.rpartition("@")
    user, _, password = login.partition(":")
    host, _, port = place.partition(":")

    def connect() -> FTP:
        ftp = FTP(timeout=10)
        ftp.connect(host, int(port or 21))
        ftp.login(user, password)
        ftp.home = ftp.pwd()
        return ftp

    def close(ftp: FTP) -> None:
        try:
            ftp.quit()
        finally:
            ftp.close()  # the socket, if the connection is lost

    def is_broken(ftp: FTP, error: BaseException) -> bool:
        # 421: the server closes the connection. An error in the middle of a transfer leaves an answer unread.
        ended = isinstance(error, error_temp) and str(error).startswith("421")
        return ended or isinstance(error, (OSError, EOFError))

    return Pool(
        connect, close=close, validate=lambda ftp: ftp.voidcmd("NOOP").startswith("2"),
        reset=lambda ftp: ftp.cwd(ftp.home).startswith("2"), is_broken=is_broken, name="ftp", **settings,
    )  # fmt: skip


def main() -> None:
    """Download the files, and print their sizes."""
    address, *files = sys.argv[1:]
    with ftp_pool(address, max_size=2) as pool, ThreadPoolExecutor(8) as threads:

        def download(file: str) -> int:
            parts: list[bytes] = []
            with pool.acquire() as ftp:
                ftp.retrbinary(f"RETR {file}", parts.append)
            return sum(map(len, parts))

        for file, size in zip(files, threads.map(download, files)):
            print(f"{file}: {size} bytes")
        print(f"{pool.metrics.snapshot().created} connections")


if __name__ == "__main__":
    main()
