"""The header of a GGUF file: metadata and tensor shapes, in 0.1 s (`gguf.GGUFReader` maps all arrays, in seconds).

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from medchat.errors import UserError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GGUFHeader:
    """`metadata` without its arrays (the vocabulary), and `shapes` by tensor name, innermost dimension first."""

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> GGUFHeader:
    """Read the header of `path`; raises UserError for a file that is missing, not GGUF, or cut off."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.", "Check the path, or leave --base out for the embedded model.")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"{path} is not a GGUF file.", "Give --base a file that ends in .gguf, or leave it out.")
        try:
            version, tensors, keys = struct.unpack("<IQQ", file.read(20))
            if version < 2:
                raise UserError(f"{path} is GGUF version {version}, too old.", "Fetch a newer copy of this model.")
            metadata = {}
            for _ in range(keys):
                key = _string(file)
                value = _value(file, *_read(file, "<I"))
                if value is not None:
                    metadata[key] = value
            shapes = {}
            for _ in range(tensors):
                name = _string(file)
                (dimensions,) = _read(file, "<I")
                shapes[name] = _read(file, f"<{dimensions}Q")
                file.seek(12, 1)  # type and offset
        except (struct.error, KeyError, UnicodeDecodeError, MemoryError, OverflowError) as error:
            raise UserError(f"{path} is damaged: its header ends early.", "Fetch the file again.") from error
    return GGUFHeader(metadata, shapes)


def _read(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO) -> str:
    return file.read(*_read(file, "<Q")).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    """Return a value, or None for an array, which is skipped."""
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _read(file, _SCALARS[kind])[0]
    inner, count = _read(file, "<IQ")
    if inner in _SCALARS:
        file.seek(struct.calcsize(_SCALARS[inner]) * count, 1)
        return None
    for _ in range(count):
        _value(file, inner) if inner == _ARRAY else file.seek(_read(file, "<Q")[0], 1)
    return None
