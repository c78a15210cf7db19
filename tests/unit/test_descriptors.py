"""Inherited connections that must not reach the server: `redirect_to_null` and `keep_forever`."""

from __future__ import annotations

import gc
import importlib.util
import os
import socket
import weakref

import pytest

from pooling.core.descriptors import redirect_to_null
from pooling.core.runtime import immortal


class Thing:
    """Can be referred to weakly."""


def test_redirected_descriptor_reaches_nothing() -> None:
    mine, peer = socket.socketpair()
    kept = mine.dup()  # as the parent's
    peer.setblocking(False)
    redirect_to_null(mine.fileno())
    assert os.write(mine.fileno(), b"goodbye") == 7
    assert not os.get_inheritable(mine.fileno())
    with pytest.raises(BlockingIOError):  # neither data nor the end of the stream
        peer.recv(100)
    kept.sendall(b"query")
    assert peer.recv(100) == b"query"
    for sock in (mine, kept, peer):
        sock.close()


def test_redirect_leaves_no_descriptor_open() -> None:
    mine, peer = socket.socketpair()
    before = os.dup(0)
    os.close(before)
    redirect_to_null(mine.fileno())
    with pytest.raises(OSError):
        redirect_to_null(-1)
    after = os.dup(0)
    os.close(after)
    assert after == before
    mine.close()
    peer.close()


def test_kept_object_is_not_destroyed() -> None:
    """With ``Py_INCREF``, and without it, as in a second copy of the module that has not imported it."""
    immortal.prepare()
    spec = importlib.util.find_spec(immortal.__name__)
    assert spec is not None and spec.loader is not None
    unprepared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unprepared)
    for module in (immortal, unprepared):
        thing = Thing()
        gone = weakref.ref(thing)
        module.keep_forever(thing)
        del thing
        gc.collect()
        assert gone() is not None
