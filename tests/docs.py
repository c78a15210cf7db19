"""Runs the examples of a page of the documentation, in a process of its own: python -m tests.docs STEPS.json

See `steps` for what is run, and CONTRIBUTING.rst for how to write examples.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import types
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGES", "ROOT", "Step", "steps"]

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]
START = re.compile(r"^( *)\.\. (?:code-block:: (\w+)|(check|not run|run in background|run):? *(.*))$")
OPTION = re.compile(r"^ +:(\w+): *(.*)$")


class Step(NamedTuple):
    """An example, or a check of what it did.

    Attributes:
        kind: ``python``, ``shell``, ``background``, ``file``: only written, ``skip``: Python that must compile.
        line: The line of the page where its text begins.
        file: The file that it is written to (the option ``:caption:``), or "".
        code: Its text.
    """

    kind: str
    line: int
    file: str
    code: str


def steps(text: str) -> list[Step]:
    """Return what is run of a page.

    Every ``.. code-block:: python``, and the body of every comment ``.. check:``; a ``.. code-block:: shell`` after a
    comment ``.. run`` or ``.. run in background``. Nothing after a comment ``.. not run: REASON``.
    """
    lines, found, number, word = text.splitlines(), [], 0, ""
    while number < len(lines):
        start, number = START.match(lines[number]), number + 1
        if start is None:
            if lines[number - 1].strip():
                word = ""  # a comment is for the block that follows it at once
            continue
        indent, language, comment, rest = start.groups()
        if comment in ("not run", "run", "run in background"):
            if comment == "not run" and not rest:
                raise ValueError(f"line {number}: give the reason: .. not run: REASON")
            word = comment
            continue
        file = ""
        while number < len(lines) and (option := OPTION.match(lines[number])):
            file = option[2] if option[1] == "caption" else file
            number += 1
        while number < len(lines) and not lines[number].strip():
            number += 1
        first, body = number, []
        while number < len(lines) and (not lines[number].strip() or lines[number].startswith(indent + " ")):
            body.append(lines[number])
            number += 1
        if language == "shell":
            kind = {"run": "shell", "run in background": "background"}.get(word, "")
        elif comment == "check" or language == "python":
            kind = "skip" if word == "not run" else "python"
        else:
            kind = ""
        file = file if re.fullmatch(r"[\w/.-]+\.\w+", file) else ""
        if not kind and file:
            kind = "file"
        if kind in ("python", "shell", "background", "skip", "file"):
            found.append(Step(kind, first + 1, file, textwrap.dedent("\n".join(body)).rstrip() + "\n"))
        word = ""
    return found


def run(path: str, given: list[Step]) -> None:
    """Run the steps one after the other, with the same names; ``printed`` is what the last one wrote."""
    page = types.ModuleType("page")
    page.__file__ = path
    sys.modules["page"] = page
    names = vars(page)
    names["printed"] = ""
    background = []
    try:
        for step in given:
            if step.file:
                Path(step.file).parent.mkdir(parents=True, exist_ok=True)
                Path(step.file).write_text(step.code, "utf-8")
            if step.kind in ("python", "skip"):
                code = compile("\n" * (step.line - 1) + step.code, path, "exec")
                if step.kind == "python":
                    with redirect_stdout(io.StringIO()) as written:
                        exec(code, names)  # noqa: S102
                    names["printed"] = written.getvalue() or names["printed"]
            elif step.kind == "shell":
                done = subprocess.run(["bash", "-ec", step.code], capture_output=True, text=True)
                names["printed"] = done.stdout
                where = f"{path}:{step.line}: exit code {done.returncode}"
                assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
            elif step.kind == "background":
                background.append(subprocess.Popen(["bash", "-c", "exec " + step.code.strip()], start_new_session=True))
    finally:
        for process in background:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


if __name__ == "__main__":
    _path, _steps = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    run(_path, [Step(*step) for step in _steps])
