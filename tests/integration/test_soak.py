"""``python -m pooling soak`` as a user runs it: whole processes, real sockets, good and bad verdicts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pooling.tools.soak.verdict import Machine

ROOT = Path(__file__).parents[2]
SHORT = ("--minutes", "0.05", "--threads", "8", "--max-size", "4")

# Users' factories, good and bad; each class is a kind of resource.
KINDS = """
    import os, socket

    class Good:
        def __init__(self):
            self.near, self.far = socket.socketpair()
        def close(self):
            self.near.close()
            self.far.close()
        def talk(self):
            self.near.sendall(b"x")
            return self.far.recv(1) == b"x"
        def deny(self):
            return False

    def check(resource):
        resource.talk()

    hoard = []

    def leaks_memory():
        hoard.append(os.urandom(1_000_000))
        return Good()

    def leaks_descriptors(resource):
        hoard.append(resource)

    def only_once():
        hoard.append(1)
        if len(hoard) > 1:
            raise OSError("no more")
        return Good()

    def fails():
        raise ConnectionRefusedError("no server")

    same = Good()

    def always_the_same():
        return same

    not_callable = 1
"""


def soak(folder: Path, *options: str) -> subprocess.Popen[str]:
    (folder / "kinds.py").write_text(textwrap.dedent(KINDS))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    return subprocess.Popen(
        [sys.executable, "-m", "pooling", "soak", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        cwd=folder,
        env=env,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def marks(output: str) -> dict[str, str]:
    """Return the verdict: the mark of each check."""
    return {name: mark for mark, name in re.findall(r"^(ok|BAD|--) +(\S+(?: count)?)", output, re.MULTILINE)}


def test_quick_soak_is_good(tmp_path: Path) -> None:
    code, output, errors = finish(soak(tmp_path, "--quick"))
    assert (code, errors) == (0, ""), output
    verdict = marks(output)
    names = "borrowers replies waiters bound server memory descriptors threads"
    assert verdict == dict.fromkeys([*names.split(), "pool's count", "own count"], "ok")
    assert re.search(r"^ +\d\.\d s +[\d,]+ leases", output, re.MULTILINE)  # progress
    assert "pool 'soak' over" in output  # the summary of the metrics
    assert re.search(r"[1-9]\d* hung up, [1-9]\d* refused, [1-9]\d* stalls", output)
    assert "medians of the middle and the last third" in output
    assert output.rstrip().endswith("good: memory and descriptors are flat, nothing was lost")


def test_a_user_factory(tmp_path: Path) -> None:
    options = ("--factory", "kinds:Good", "--validate", "kinds:check", "--use", "talk")
    code, output, errors = finish(soak(tmp_path, *SHORT, *options))
    assert (code, errors) == (0, ""), output
    assert "Good objects made by kinds:Good (close close, validate kinds:check, use talk)" in output
    assert "BAD" not in marks(output).values()


@pytest.mark.parametrize(
    ("options", "bad"),
    [
        (("--factory", "kinds:leaks_memory"), {"memory"}),
        (("--factory", "kinds:Good", "--close", "kinds:leaks_descriptors"), {"descriptors"}),
        (("--factory", "kinds:Good", "--use", "deny"), {"borrowers", "replies"}),
        (("--factory", "kinds:always_the_same"), {"borrowers"}),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_a_bad_verdict(tmp_path: Path, options: tuple[str, ...], bad: set[str]) -> None:
    code, output, errors = finish(soak(tmp_path, *SHORT, *options))
    assert (code, errors) == (1, ""), output
    assert {name for name, mark in marks(output).items() if mark == "BAD"} >= bad
    assert re.search(r"^BAD: ", output, re.MULTILINE)


def test_a_server_that_is_down_gives_a_bad_verdict(tmp_path: Path) -> None:
    code, output, errors = finish(soak(tmp_path, *SHORT, "--factory", "kinds:only_once"))
    assert (code, errors) == (1, ""), output
    assert "BAD: borrowers" in output  # not a single lease
    assert "waiters      0 stuck, 0 not served" in output  # the server's fault, not the pool's


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--minutes", "0"), "argument --minutes: must be a number from 0.01"),
        (("--minutes", "1", "--quick"), "not allowed with argument"),
        (("--threads", "many"), "argument --threads: must be a whole number from 1"),
        (("--max-size", "0"), "argument --max-size: must be a whole number from 1"),
        (("--seed", "-1"), "argument --seed: must be a whole number"),
        (("--close", "close"), "argument --close: only with --factory"),
        (("--factory", "kinds"), "argument --factory: must be package.module:callable, not 'kinds'"),
        (("--factory", "nowhere:make"), "argument --factory: cannot import 'nowhere': ModuleNotFoundError"),
        (("--factory", "kinds:nothing"), "argument --factory: there is no 'nothing' in 'kinds'"),
        (("--factory", "kinds:not_callable"), "argument --factory: 'kinds:not_callable' is not callable"),
        (("--factory", "kinds:Good", "--validate", "ping"), "argument --validate: a Good has no method 'ping'"),
        (("--factory", "kinds:Good", "--close", "a b"), "argument --close: must be package.module:callable, or"),
    ],
)
def test_a_bad_option_is_refused(tmp_path: Path, options: tuple[str, ...], complaint: str) -> None:
    code, output, errors = finish(soak(tmp_path, *options))
    assert (code, output) == (2, "")
    assert complaint in errors
    assert "Traceback" not in errors


def test_a_factory_that_fails_at_once_is_reported(tmp_path: Path) -> None:
    code, _, errors = finish(soak(tmp_path, *SHORT, "--factory", "kinds:fails"))
    assert code == 1
    expected = "the first call of kinds:fails failed: ConnectionRefusedError: no server"
    assert errors == f"python -m pooling soak: error: {expected}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_prints_the_verdict_so_far(tmp_path: Path, number: signal.Signals) -> None:
    process = soak(tmp_path, "--minutes", "10")
    assert process.stdout is not None
    for line in process.stdout:
        if " leases" in line:
            break
    process.send_signal(number)
    code, output, errors = finish(process)
    assert (code, errors) == (128 + number, ""), output
    assert output.startswith("interrupted\n")
    assert "BAD" not in marks(output).values() and marks(output)["own count"] == "ok"


def test_the_trend_of_the_memory() -> None:
    """A peak and a step during warm-up are not a trend, a slope is; too few samples give no verdict."""
    machine = Machine(1.0)
    flat = [30_000_000] * 100

    def judged(samples: list[int]) -> bool | None:
        machine.samples = samples
        return machine.memory().good

    assert judged(flat) is True
    assert judged([10_000_000] * 20 + flat) is True
    assert judged([*flat[:90], *[90_000_000] * 5, *flat[:5]]) is True
    assert judged([30_000_000 + 100_000 * n for n in range(100)]) is False
    assert judged(flat[:5]) is None
