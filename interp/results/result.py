"""Result: what a run gave. Arrays with units, checks, provenance, and the run itself as code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.results import display, exports, retelling
from interp.store import Record, Store, canonical, read_run, replace_file, spec_hash, write_run
from interp.terms import Check

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a run gave.

    Args:
        data: named arrays; every variable has ``units``, ``long_name`` and ``signed``.
        spec: what was asked, as plain JSON; ``spec_hash`` is its fingerprint.
        provenance: model and weight hash, task hash, seeds, backend, device, dtype, partition,
            library versions, git revision, wall time, peak memory.
        checks: the trust panel.
        tokens: raw texts of the prompts' tokens, for labels, or None.
        run_id: id in a store, or None.
        path: folder it was saved to or read from, or None.
    """

    data: xr.Dataset
    spec: dict[str, Any]
    provenance: dict[str, Any]
    checks: Sequence[Check] = ()
    tokens: dict[str, Any] | None = None
    run_id: str | None = None
    path: Path | None = None

    @property
    def spec_hash(self) -> str:
        """sha256 of what decides the numbers."""
        return spec_hash(self.spec)

    @property
    def passed(self) -> bool:
        """Whether every line of the trust panel passes."""
        return all(c.passed for c in self.checks)

    @property
    def failed_checks(self) -> tuple[Check, ...]:
        """The lines of the trust panel that do not pass."""
        return tuple(c for c in self.checks if not c.passed)

    @property
    def record(self) -> Record:
        """As it is stored."""
        return Record(self.spec, self.data, self.provenance, self.checks, self.tokens)

    @property
    def title(self) -> str:
        """Method and model in words."""
        return display.title_of(self.spec, self.provenance)

    @property
    def stamp(self) -> str:
        """The line under every picture that says where its numbers come from."""
        return display.stamp_of(self.spec, self.provenance, self.run_id)

    def figures(self) -> dict[str, Any]:
        """Variable -> ``plotly`` figure, chosen by the kinds of its axes."""
        from interp.figures import figures_of

        return figures_of(self.data, tokens=self.tokens, title=self.title, stamp=self.stamp)

    def __repr__(self) -> str:
        return display.text_of(self)

    def _repr_html_(self) -> str:
        return display.html_of(self)

    # -- the same run, told again --------------------------------------------------------------

    def to_python(self) -> str:
        """Python that runs this again and arrives at the same ``spec_hash``."""
        return retelling.python_of(self.spec, self.provenance)

    def to_command(self) -> str:
        """The same for a shell, every word quoted; a task made by hand is written to a file."""
        return retelling.command_of(self.spec, self.provenance)

    def to_notebook(self, path: str | Path | None = None) -> dict[str, Any]:
        """The same as a notebook (nbformat 4, plain JSON), written to ``path`` if one is given."""
        book = retelling.notebook_of(self)
        if path is not None:
            replace_file(Path(path).expanduser(), canonical(book))
        return book

    # -- to disk -------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Save as one folder (spec.json, manifest.json, data.nc), which must not hold anything.

        Raises:
            UsageError: the folder is not empty.
            DiskFullError: with the bytes needed and free.
        """
        return write_run(Path(path).expanduser(), self.record)

    def to_csv(self, path: str | Path) -> Path:
        """CSV in long form (a column an axis) and beside it a JSON file with the metadata.

        Text cells that a spreadsheet would take for a formula begin with an apostrophe.
        """
        return exports.write_csv(self, Path(path).expanduser())

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything as one JSON document; undefined numbers are null."""
        text = exports.json_of(self)
        if path is not None:
            replace_file(Path(path).expanduser(), text.encode())
        return text

    def to_netcdf(self, path: str | Path) -> Path:
        """The arrays as one netCDF file (texts among the coordinates are written out)."""
        return exports.write_netcdf(self, Path(path).expanduser())


def result_of(record: Record, *, run_id: str | None = None, path: Path | None = None) -> Result:
    """A stored record as a result."""
    return Result(
        record.data,
        record.spec,
        record.provenance,
        tuple(record.checks),
        record.tokens,
        run_id,
        path,
    )


def load_result(path: str | Path) -> Result:
    """Open a saved result: hashes and structure are checked before anything is read.

    Raises:
        UsageError: there is none.
        DamagedError: a file is missing, cut or altered; the file and both hashes are named.
        UnsafeError: ``data.nc`` holds something other than arrays.
    """
    folder = Path(path).expanduser()
    return result_of(read_run(folder), path=folder)


def stored_result(store: Store, run_id: str) -> Result:
    """Open a run of a store as a result."""
    run_id = store.resolve(run_id)
    return result_of(store.get(run_id), run_id=run_id, path=store.path(run_id))
