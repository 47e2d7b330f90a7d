"""What the command line says: results on stdout, everything else on stderr, and exit codes.

Token text never meets rich's markup (a token ``[/]`` would raise, ``[red]`` would be swallowed):
it goes through ``Text``, its control characters made visible, so that no terminal escape of a
vocabulary reaches the terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.terms.checks import Check
from interp.terms.errors import InterpError, TaskError

if TYPE_CHECKING:
    from rich.console import Console

DONE, FAILED, USAGE, UNTRUSTED, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes: done; failed; usage; done but a trust check failed; refused; Ctrl-C."""


@dataclass
class Voice:
    """How a command speaks.

    Args:
        as_json: one JSON document on stdout and nothing else there.
        quiet: only results and errors.
    """

    as_json: bool = False
    quiet: bool = False

    @property
    def progress(self) -> bool:
        """Whether a progress bar is wanted."""
        return not self.quiet and sys.stderr.isatty()

    def note(self, text: str) -> None:
        """A remark for the person, on stderr."""
        if not self.quiet:
            console(stderr=True).print(plain(text), soft_wrap=True)

    def document(self, body: Any) -> None:
        """The one JSON document of ``--json``."""
        sys.stdout.write(json.dumps(finite(body), indent=1, ensure_ascii=True, default=str) + "\n")
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """A line of the result, on stdout."""
        console().print(plain(text, style), soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        title: str = "",
        right: Iterable[str] = (),
    ) -> None:
        """Rows on stdout; as tab-separated lines where stdout is no terminal."""
        rows = [[visible(_cell(c)) for c in row] for row in rows]
        out = console()
        if not out.is_terminal:
            if title:
                out.print(plain(title), soft_wrap=True)
            for row in [list(columns), *rows]:
                out.print(plain("\t".join(row)), soft_wrap=True)
            return
        from rich.table import Table

        right = set(right)
        table = Table(
            title=plain(title) if title else None,
            title_justify="left",
            header_style="bold",
            box=None,
            pad_edge=False,
        )
        for name in columns:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(plain, row))
        out.print(table)


def console(stderr: bool = False) -> Console:
    """A rich console on the stream as it is now; ``NO_COLOR`` is rich's own rule."""
    from rich.console import Console

    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        no_color=bool(os.environ.get("NO_COLOR")) or None,
    )


def plain(text: str, style: str = "") -> Any:
    """``text`` as rich text: markup is not read, control characters are visible."""
    from rich.text import Text

    return Text(visible(text), style=style)


def visible(text: str) -> str:
    r"""``text`` with every control character but the line break written as its code."""
    import unicodedata

    return "".join(
        c
        if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else f"\\u{ord(c):04x}"
        for c in text
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "undefined" if value != value else f"{value:.4g}"
    return str(value).replace("\t", "⇥").replace("\n", "⏎")


def finite(body: Any) -> Any:
    """JSON has no NaN: undefined numbers become null."""
    if isinstance(body, float):
        return body if body == body and abs(body) != float("inf") else None
    if isinstance(body, dict):
        return {str(k): finite(v) for k, v in body.items()}
    if isinstance(body, (list, tuple)):
        return [finite(v) for v in body]
    return body


def tell_error(error: InterpError, voice: Voice) -> int:
    """Say what was given, what was wanted and what to do; the exit code."""
    lines = [f"Error: {error.message}"]
    if isinstance(error, TaskError):
        lines += [f"  row {n}: {why}" for n, why in error.rows[5:25]]
    if error.remedy:
        lines.append(error.remedy)
    if voice.as_json:
        body: dict[str, Any] = {
            "error": error.message,
            "remedy": error.remedy,
            "kind": type(error).__name__,
            "exit_code": error.exit_code,
        }
        if isinstance(error, TaskError):
            body["rows"] = [list(r) for r in error.rows]
        voice.document(body)
    err = console(stderr=True)
    for i, text in enumerate(lines):
        err.print(plain(text, "bold red" if i == 0 else ""), soft_wrap=True)
    return error.exit_code


def check_rows(checks: Iterable[Check]) -> list[list[Any]]:
    """The trust panel as rows: verdict, title, value, bound, note."""
    rows = []
    for c in checks:
        bound = "" if c.tolerance is None else (f"{'≥' if c.at_least else '≤'} {c.tolerance:.3g}")
        verdict = "stated" if c.tolerance is None else "passed" if c.passed else "FAILED"
        rows.append([verdict, c.title, float(c.value), bound, c.note])
    return rows


def tell_checks(checks: Sequence[Check], voice: Voice) -> int:
    """The trust panel on stdout; the exit code."""
    voice.table(
        ["verdict", "check", "value", "wanted", "note"], check_rows(checks), right=["value"]
    )
    failed = [c for c in checks if not c.passed]
    if failed:
        voice.line(
            f"{len(failed)} of {len(checks)} checks failed: read these numbers with that in mind.",
            "bold yellow",
        )
    return UNTRUSTED if failed else DONE
