"""Texts, tables, datasets and figures of a record, each written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlab.files import atomic

if TYPE_CHECKING:
    import xarray


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON atomically; NaN and infinity are refused, since JSON has neither."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: the file is no JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a readable JSON file: {error}") from error


def write_dataset(path: Path, dataset: xarray.Dataset) -> None:
    """Writes a dataset as netCDF-4 (HDF5), atomically.

    Booleans and integers come back with their dtypes; see `read_dataset`.
    """
    with atomic(path) as temporary:
        dataset.to_netcdf(temporary, engine="h5netcdf")


def read_dataset(path: Path) -> xarray.Dataset:
    """Reads a whole dataset into memory and closes the file."""
    import xarray

    with xarray.open_dataset(path, engine="h5netcdf") as dataset:
        return dataset.load()


def write_figure(path: Path, figure: Any) -> None:
    """Writes a matplotlib figure as PNG, atomically."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=160)
