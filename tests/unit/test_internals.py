"""The internals of psycopg and CPython that the pool uses exist in the installed versions."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import psycopg
import pytest

import pooling
from pooling._plain import switched_off
from pooling.adapters.postgres import internals, pool, steps
from pooling.core.runtime import immortal, parking

assert pool  # imports all of the package, and so each module's list
MODULES = sorted(internals.USED)

@pytest.mark.parametrize("module", MODULES)
def test_installed_psycopg_has_what_the_module_uses(module: str) -> None:
    used = internals.USED[module]
    assert not used.missing, str(used)


def test_connection_keeps_nothing_that_is_not_restored() -> None:
    """A new attribute that psycopg changes in place would be shared by all borrowers of a connection."""
    known = {
        "pgconn", "lock", "row_factory", "cursor_factory", "server_cursor_factory",
        "_autocommit", "_isolation_level", "_read_only", "_deferrable", "_begin_statement", "_closed", "_tpc",
        "_num_transactions", "_pipeline", "_adapters", "_notice_handlers", "_notify_handlers", "_prepared",
        "_notifies_backlog",
    }  # fmt: skip
    unknown = vars(internals.OWNERS["Connection"]).keys() - known
    assert not unknown, (
        f"psycopg {psycopg.__version__} keeps {', '.join(sorted(unknown))} in a connection: is that changed in place? "
        "See pooling/adapters/postgres/client_state.py"
    )


def test_generators_have_the_variables_that_steps_reads() -> None:
    assert steps.AVAILABLE or switched_off("steps"), (
        f"psycopg {psycopg.__version__}: Cursor._execute_gen() has no query and params; "
        "see pooling/adapters/postgres/steps.py"
    )
    assert {"statement"} <= set(psycopg.Cursor._start_copy_gen.__code__.co_varnames)


@pytest.mark.skipif(switched_off("immortal"), reason="it is switched off")
def test_interpreter_has_what_keeps_objects_forever() -> None:
    immortal.prepare()
    assert immortal.incref is not None, f"Python {sys.version} has no _ctypes.Py_INCREF; see runtime/immortal.py"


@pytest.mark.skipif(switched_off("parking") or sys.version_info < (3, 13), reason="this interpreter does not need it")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_interpreter_has_what_clears_parked_threads() -> None:
    assert parking.clear_in_children(), f"Python {sys.version} has no _PyParkingLot_AfterFork; see runtime/parking.py"


def test_objects_are_kept_without_py_incref(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(immortal, "incref", None)
    monkeypatch.setattr(immortal, "kept", [])
    thing = object()
    immortal.keep_forever(thing)
    assert immortal.kept == [thing]


def test_children_work_without_the_parking_lot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parking, "registered", [])
    monkeypatch.setattr(parking, "register", lambda: False)
    assert not parking.clear_in_children()
    immortal.prepare()


def test_every_module_that_uses_internals_says_what_it_gains() -> None:
    package = Path(pooling.__file__).parent
    fenced = {path for path in package.rglob("*.py") if "switched_off(" in path.read_text(encoding="utf-8")}
    fenced |= {package / "adapters" / "postgres" / f"{module}.py" for module in MODULES}
    fenced -= {package / "_plain.py", package / "adapters" / "postgres" / "internals.py"}  # the switch, and a list
    assert len(fenced) >= 14
    for path in sorted(fenced):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert "Gain: " in text and "ithout" in text and "POOLING_PLAIN=1" in text, path
