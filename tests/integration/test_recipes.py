"""The recipes in ``examples/recipes``: each as it stands, against a real server, and against one that ends sessions."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.otherservers import PASSWORD, ftp_server, ldap_server, mail_server, rabbitmq_server, ssh_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of ldap3 and pyftpdlib, about what they use
ROOT = Path(__file__).parents[2]


class Recipe(NamedTuple):
    """A recipe at work.

    Attributes:
        arguments: Of its command.
        output: What the command prints, sorted, without its last line.
        pool: Returns its pool.
        socket: Returns the socket of a resource.
        seen: Returns what the server has by now.
    """

    arguments: list[str]
    output: list[str]
    pool: Callable[..., Any]
    socket: Callable[[Any], Any]
    seen: Callable[[], object] = lambda: None


def _module(name: str) -> Any:
    return importlib.import_module(f"examples.recipes.{name}")


def _ldap(stack: ExitStack, tmp_path: Path) -> Recipe:
    people = {f"u{n}": f"Person {n}" for n in range(20)}
    url, admin, base = stack.enter_context(ldap_server(people))
    return Recipe(
        [url, admin, PASSWORD, base, *people, "u*"],  # the last is no pattern
        ["u*: nobody", *(f"{uid}: {name}" for uid, name in people.items())],
        lambda **settings: _module("ldap").ldap_pool(url, admin, PASSWORD, **settings), lambda one: one.socket,
    )  # fmt: skip


def _sftp(stack: ExitStack, tmp_path: Path) -> Recipe:
    address, key, known, inbox = stack.enter_context(ssh_server())
    files = [tmp_path / f"file{n}" for n in range(20)]
    for number, file in enumerate(files):
        file.write_bytes(b"x" * number)
    return Recipe(
        [address, str(key), str(known), str(inbox), *map(str, files)],
        [f"file{n}: {n} bytes" for n in range(20)],
        lambda **settings: _module("sftp").sftp_pool(address, str(key), str(known), **settings),
        lambda one: one.get_channel().get_transport().sock, lambda: sorted(path.name for path in inbox.iterdir()),
    )  # fmt: skip


def _ftp(stack: ExitStack, tmp_path: Path) -> Recipe:
    for number in range(20):
        (tmp_path / f"file{number}").write_bytes(b"x" * number)
    address = stack.enter_context(ftp_server(tmp_path))
    return Recipe(
        [address, *(f"file{n}" for n in range(20))], [f"file{n}: {n} bytes" for n in range(20)],
        lambda **settings: _module("ftp").ftp_pool(address, **settings), lambda one: one.sock,
    )  # fmt: skip


def _mail(stack: ExitStack, tmp_path: Path) -> Recipe:
    address, received = stack.enter_context(mail_server())
    recipients = [f"u{n}@example.com" for n in range(20)]
    return Recipe(
        [address, "shop@example.com", *recipients], [f"sent to {one}" for one in recipients],
        lambda **settings: _module("mail").mail_pool(address, **settings), lambda one: one.sock,
        lambda: sorted(received),
    )  # fmt: skip


def _rabbitmq(stack: ExitStack, tmp_path: Path) -> Recipe:
    url = stack.enter_context(rabbitmq_server())
    return Recipe(
        [url, "orders", *(f"text {n}" for n in range(20))], ["20 messages in orders"],
        lambda **settings: _module("rabbitmq").channel_pool(url, **settings),
        attrgetter("connection._impl._transport._sock"),  # pika's
    )  # fmt: skip


RECIPES = {"ldap": _ldap, "sftp": _sftp, "ftp": _ftp, "mail": _mail, "rabbitmq": _rabbitmq}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Recipe]]:
    with ExitStack() as stack:
        yield request.param, RECIPES[request.param](stack, tmp_path)


def test_recipe(recipe: tuple[str, Recipe]) -> None:
    """It does its work over two connections, and goes on after the network has cut one that is idle."""
    name, given = recipe
    done = subprocess.run(
        [sys.executable, ROOT / f"examples/recipes/{name}.py", *given.arguments],
        text=True, capture_output=True, timeout=120, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert sorted(lines) == sorted(given.output)
    assert last.split()[0] in ("1", "2")  # connections; one is enough if each use is short
    if name == "sftp":
        assert given.seen() == sorted(f"file{n}" for n in range(20))
    if name == "mail":
        assert given.seen() == sorted(f"u{n}@example.com" for n in range(20))

    with given.pool(max_size=2, validation_interval=0.0) as pool:
        with pool.acquire() as first:
            pass
        with pool.acquire() as again:
            assert again is first
        given.socket(first).shutdown(2)
        with pool.acquire() as other:
            assert other is not first
        with pytest.raises(Exception, match="(?s).*"), pool.acquire() as lent:  # cut while it is in use
            given.socket(lent).shutdown(2)
            pool.engine.adapter.validate(lent, 10.0)
            raise ConnectionError("it has not noticed")
        assert pool.stats()["in_use"] == 0
        with pool.acquire() as last_one:
            assert last_one not in (first, lent)


def test_what_a_borrower_changes_is_undone(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with ExitStack() as stack:
        people = {"u1": "Person"}
        url, admin, base = stack.enter_context(ldap_server(people))
        with _module("ldap").ldap_pool(url, admin, PASSWORD, max_size=1) as pool:
            with pool.acquire() as one:
                one.rebind(f"uid=u1,{base}", "u1")
            with pool.acquire() as same:
                assert same is one and same.extend.standard.who_am_i() == f"dn:{admin}"
        address = stack.enter_context(ftp_server(tmp_path))
        with _module("ftp").ftp_pool(address, max_size=1) as pool:
            with pool.acquire() as ftp:
                ftp.cwd("inner")
            with pool.acquire() as same_ftp:
                assert same_ftp is ftp and same_ftp.pwd() == "/"
        place, key, known, inbox = stack.enter_context(ssh_server())
        with _module("sftp").sftp_pool(place, str(key), str(known), max_size=1) as pool:
            with pool.acquire() as sftp:
                sftp.chdir(str(inbox))
                with pytest.raises(FileNotFoundError):
                    sftp.stat("nothing")
            with pool.acquire() as same_sftp:
                assert same_sftp is sftp and same_sftp.getcwd() is None
