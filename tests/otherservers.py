"""Private servers of protocols that this package has recipes for: LDAP, SSH, RabbitMQ, FTP, SMTP and MongoDB."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

from tests.servers import LOOPBACK, _free_port, _Home, requires

__all__ = ["PASSWORD", "MongoServer", "ftp_server", "ldap_server", "mail_server", "rabbitmq_server", "ssh_server"]

PASSWORD = "correct-horse"


def _program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/lib/rabbitmq/bin")
    requires(name, found, f"apt-get install {package}")
    assert found is not None
    return found


@contextmanager
def _running(
    home: _Home, command: list[str], port: int, environment: dict[str, str] | None = None, timeout: float = 90.0
) -> Iterator[None]:
    """Run a server until the block ends, which begins when it accepts connections."""
    log = home.path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=home.path, start_new_session=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    try:
        home.note(process.pid)
        _await(lambda: _accepts(port), process, log, timeout)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        home.note(None)
        home.remove()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
    except OSError:
        return False
    return True


def _await(reached: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


@contextmanager
def ldap_server(people: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """slapd with these people (names by user id); gives its URL, the administrator's DN, and the base DN."""
    slapd, slapadd = _program("slapd", "slapd"), _program("slapadd", "slapd")
    home, port = _Home("ldap"), _free_port()
    base, admin = "dc=example,dc=com", "cn=admin,dc=example,dc=com"
    (home.path / "data").mkdir()
    (home.path / "slapd.conf").write_text(
        "".join(f"include /etc/ldap/schema/{name}.schema\n" for name in ("core", "cosine", "inetorgperson"))
        + f"pidfile {home.path}/slapd.pid\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\ndatabase mdb\n"
        f'suffix "{base}"\nrootdn "{admin}"\nrootpw {PASSWORD}\ndirectory {home.path}/data\n'
    )
    entries = [f"dn: {base}\nobjectClass: dcObject\nobjectClass: organization\no: Example\ndc: example\n"]
    entries += [
        f"dn: uid={uid},{base}\nobjectClass: inetOrgPerson\nuid: {uid}\ncn: {name}\nsn: {name}\nuserPassword: {uid}\n"
        for uid, name in people.items()
    ]
    config = ["-f", str(home.path / "slapd.conf")]
    subprocess.run([slapadd, *config], input="\n".join(entries).encode(), check=True, capture_output=True)
    url = f"ldap://{LOOPBACK}:{port}"
    with _running(home, [slapd, "-d", "0", "-h", url, *config], port):
        yield url, admin, base


@contextmanager
def ssh_server() -> Iterator[tuple[str, Path, Path, Path]]:
    """sshd for this user; gives ``user@host:port``, a key file, a file of known hosts, and an empty directory."""
    sshd, keygen = _program("sshd", "openssh-server"), _program("ssh-keygen", "openssh-client")
    sftp = "/usr/lib/openssh/sftp-server"
    requires("sftp-server", os.path.exists(sftp), "apt-get install openssh-sftp-server")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", 0o755, exist_ok=True)  # it insists
    home, port = _Home("ssh"), _free_port()
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", home.path / name], check=True)
    (home.path / "inbox").mkdir()
    (home.path / "known").write_text(f"[{LOOPBACK}]:{port} " + (home.path / "host.pub").read_text())
    (home.path / "config").write_text(
        f"Port {port}\nListenAddress {LOOPBACK}\nHostKey {home.path}/host\nPidFile {home.path}/sshd.pid\n"
        f"AuthorizedKeysFile {home.path}/user.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"PermitRootLogin prohibit-password\nMaxStartups 100\nSubsystem sftp {sftp}\n"
    )
    with _running(home, [sshd, "-D", "-e", "-f", str(home.path / "config")], port):
        import pwd

        user = pwd.getpwuid(os.geteuid()).pw_name
        yield f"{user}@{LOOPBACK}:{port}", home.path / "user", home.path / "known", home.path / "inbox"


@contextmanager
def rabbitmq_server() -> Iterator[str]:
    """RabbitMQ, which begins with the user ``guest``; gives its URL."""
    program = _program("rabbitmq-server", "rabbitmq-server")
    script = "/usr/lib/rabbitmq/bin/rabbitmq-server"  # Debian's command changes the user
    program = script if os.path.exists(script) else program
    home, port = _Home("rabbitmq"), _free_port()
    environment = {
        "HOME": str(home.path), "RABBITMQ_NODENAME": f"pooling{secrets.token_hex(4)}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK, "RABBITMQ_NODE_PORT": str(port), "RABBITMQ_DIST_PORT": str(_free_port()),
        "ERL_EPMD_PORT": str(_free_port()), "ERL_EPMD_ADDRESS": LOOPBACK, "RABBITMQ_MNESIA_BASE": f"{home.path}/data",
        "RABBITMQ_LOG_BASE": f"{home.path}/logs", "RABBITMQ_LOGS": "-",
        "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home.path}/plugins", "RABBITMQ_CONF_ENV_FILE": f"{home.path}/none",
        "RABBITMQ_CONFIG_FILE": f"{home.path}/none",
    }  # fmt: skip
    with _running(home, [program], port, environment):
        yield f"amqp://guest:guest@{LOOPBACK}:{port}/"


@contextmanager
def ftp_server(directory: Path) -> Iterator[str]:
    """An FTP server of this process that serves a directory; gives ``user:password@host:port``."""
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import ThreadedFTPServer

    class Handler(FTPHandler):  # type: ignore[misc]
        authorizer = DummyAuthorizer()

    Handler.authorizer.add_user("app", PASSWORD, str(directory))
    server = ThreadedFTPServer((LOOPBACK, 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"timeout": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"app:{PASSWORD}@{LOOPBACK}:{server.address[1]}"
    finally:
        server.close_all()
        thread.join(10)


@contextmanager
def mail_server() -> Iterator[tuple[str, list[str]]]:
    """A mail server of this process; gives its address, and the recipients of the mails that it took."""
    from aiosmtpd.controller import Controller

    recipients: list[str] = []

    class Handler:
        async def handle_DATA(self, server: object, session: object, envelope: object) -> str:
            recipients.extend(envelope.rcpt_tos)  # type: ignore[attr-defined]
            return "250 stored"

    controller = Controller(Handler(), hostname=LOOPBACK, port=_free_port())
    controller.start()
    try:
        yield f"{LOOPBACK}:{controller.port}", recipients
    finally:
        controller.stop()


class MongoServer:
    """A server of MongoDB's protocol that stores in SQLite (MongoDB's own is in no registry of packages).

    The test may kill and restart it, on the same data and port.
    """

    def __init__(self) -> None:
        requires("nx-27017", find_spec("nx_27017"), "pip install nx-27017")
        self._home, self.port = _Home("mongo"), _free_port()
        self.url = f"mongodb://{LOOPBACK}:{self.port}/"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it accepts connections."""
        home, log = self._home.path, self._home.path / "log"
        command = [sys.executable, "-m", "nx_27017.nx_27017", "--data-dir", str(home / "data"), f"--port={self.port}"]
        command += ["--log-file", str(home / "own-log"), "--pid-file", str(home / "own-pid")]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=home, start_new_session=True
            )
        self._home.note(self._process.pid)
        _await(lambda: _accepts(self.port), self._process, log, 60)

    def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._home.note(None)

    def __enter__(self) -> MongoServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._home.remove()
