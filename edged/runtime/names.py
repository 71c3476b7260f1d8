"""Bounds on the names a module gives itself and its functions (custom section "name").

wasmtime copies the function's name for every frame of a backtrace, so a 60 MB name in 20 frames
took 4 GB and seconds of the process. Names are refused, not stripped: the module's digest stays
that of what runs. Every section of that name counts, as every one is read by wasmtime, which also
keeps what comes before the first malformed byte; so a section that cannot be read to its end here
is refused if a name over the bound would fit it. Source: WebAssembly core specification §7.4.1.
"""

from __future__ import annotations

from typing import Final

from .sections import Malformed, Reader

NAME_BYTES_MAX: Final = 64 * 1024
"""Of one: 1.3 MB in 20 frames. C++ mangles deep templates into thousands of bytes."""
NAMES_MAX: Final = 1_000_000
"""wasmtime's own bound on functions."""
_MODULE: Final = 0
_FUNCTIONS: Final = 1


class NamesRefused(Exception):
    """Says which bound is exceeded."""


def check_names(wasm: bytes) -> None:
    """Raises NamesRefused. A module that cannot be read otherwise is left to the validator."""
    reader = Reader(wasm)
    names = 0
    try:
        reader.skip(8)
        while reader.at < len(wasm):
            section, size = reader.byte(), reader.number()
            end = reader.at + size
            if section == 0 and _is_name_section(Reader(wasm, reader.at, min(end, len(wasm)))):
                names += _check_section(Reader(wasm, reader.at, min(end, len(wasm))))
                if names > NAMES_MAX:
                    raise NamesRefused(f"more than {NAMES_MAX} names")
            reader.skip(size)
    except Malformed:
        return


def _is_name_section(body: Reader) -> bool:
    size = body.number()
    return size == 4 and body.take(4) == b"name"


def _check_section(body: Reader) -> int:
    """How many functions it names."""
    size_bytes = body.end - body.at
    names = 0
    try:
        body.skip(body.number())
        while body.at < body.end:
            kind, size = body.byte(), body.number()
            part = Reader(body.data, body.at, min(body.at + size, body.end))
            if kind == _MODULE:
                _check_name(part)
            elif kind == _FUNCTIONS:
                for _ in range(part.number()):
                    part.number()  # the function's index
                    _check_name(part)
                    names += 1
                    if names > NAMES_MAX:
                        return names
            body.skip(size)
    except Malformed as error:
        if size_bytes > NAME_BYTES_MAX:
            raise NamesRefused(f"a name section of {size_bytes} bytes is malformed") from error
    return names


def _check_name(part: Reader) -> None:
    size = part.number()
    if size > NAME_BYTES_MAX:
        raise NamesRefused(f"a name of {size} bytes; at most {NAME_BYTES_MAX}")
    part.skip(size)
