"""Floor 4: keep runs. Immutable folders, an index that can be made again, checked on opening."""

from interp.store.arrays import dataset_from_json, dataset_to_json, to_netcdf
from interp.store.chunks import Chunks
from interp.store.compare import ArrayDifference, Comparison, compare
from interp.store.database import database, transaction
from interp.store.files import canonical, make_folder, read_bytes, replace_file, write_file
from interp.store.index import RunRow, Store, default_root
from interp.store.pairs import keep_task, kept_task
from interp.store.records import FORMAT, Record, read_run, spec_hash, verify_run, write_run

__all__ = [
    "FORMAT",
    "ArrayDifference",
    "Chunks",
    "Comparison",
    "Record",
    "RunRow",
    "Store",
    "canonical",
    "compare",
    "database",
    "dataset_from_json",
    "dataset_to_json",
    "default_root",
    "keep_task",
    "kept_task",
    "make_folder",
    "read_bytes",
    "read_run",
    "replace_file",
    "spec_hash",
    "to_netcdf",
    "transaction",
    "verify_run",
    "write_file",
    "write_run",
]
