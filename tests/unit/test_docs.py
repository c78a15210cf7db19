"""How examples of the documentation are found, and that none is left out without a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import PAGES, ROOT, Step, steps

PAGE = """
Text.

.. code-block:: python

    first = 1

    second = 2

.. not run: needs a cluster
.. code-block:: python

    third

- In a list:

  .. code-block:: python
     :caption: shop.py

     x = 1

.. code-block:: ini
   :caption: gunicorn.conf.py

   workers = 4

.. code-block:: shell

    ls

.. run
.. code-block:: shell

    echo hello

.. check:

    assert printed == "hello"

.. run in background

.. code-block:: shell

    gunicorn shop:app
"""


def test_examples_are_found() -> None:
    assert steps(PAGE) == [
        Step("python", 6, "", "first = 1\n\nsecond = 2\n"),
        Step("skip", 13, "", "third\n"),
        Step("python", 20, "shop.py", "x = 1\n"),
        Step("file", 25, "gunicorn.conf.py", "workers = 4\n"),
        Step("shell", 34, "", "echo hello\n"),
        Step("python", 38, "", 'assert printed == "hello"\n'),
        Step("background", 44, "", "gunicorn shop:app\n"),
    ]


def test_what_is_not_run_has_a_reason() -> None:
    with pytest.raises(ValueError, match="give the reason"):
        steps(".. not run:\n.. code-block:: python\n\n    x\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_compile(page: Path) -> None:
    for step in steps(page.read_text("utf-8")):
        if step.kind in ("python", "skip"):
            compile("\n" * (step.line - 1) + step.code, str(page), "exec")


README = (ROOT / "README.rst").read_text("utf-8")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 200, "what users need goes into docs/"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"<([\w./-]+)>`_|^\.\. image:: (\S+)", README, re.M))))
def test_links_of_the_readme_exist(target: tuple[str, str]) -> None:
    assert (ROOT / "".join(target)).exists()
