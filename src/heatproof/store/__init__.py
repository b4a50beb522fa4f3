"""Files of maps and curves; the only package that imports h5py.

An attribution file is written by `MapWriter` and read by `MapReader`, a file of infilled images by `InfillWriter` and
`InfillReader`; `RowWriter` and `RowReader` are the same for any other columns with one row for each image. How the bytes lie, and why a kill loses nothing, is told in `writer.py`.
"""

from heatproof.store.columns import Block, Column, rows_per_shard
from heatproof.store.export import export_archive, export_npz, export_virelay
from heatproof.store.imported import ImportedMaps, imported_maps
from heatproof.store.infills import InfillReader, InfillWriter
from heatproof.store.inspection import Report, inspect, render
from heatproof.store.maps import CONSTANT, FORMAT, FORMAT_VERSION, INVALID, MapReader, MapWriter
from heatproof.store.reader import RowReader
from heatproof.store.state import State, content_id, damage_of, read_state
from heatproof.store.writer import RowWriter, remove_parts

__all__ = [
    "CONSTANT",
    "FORMAT",
    "FORMAT_VERSION",
    "INVALID",
    "Block",
    "Column",
    "ImportedMaps",
    "InfillReader",
    "InfillWriter",
    "MapReader",
    "MapWriter",
    "Report",
    "RowReader",
    "RowWriter",
    "State",
    "content_id",
    "damage_of",
    "export_archive",
    "export_npz",
    "export_virelay",
    "imported_maps",
    "inspect",
    "read_state",
    "remove_parts",
    "render",
    "rows_per_shard",
]
