"""How large an ONNX file is apart from its constants, read before anything is made of it."""

from __future__ import annotations

_GRAPH, _CONSTANT, _VALUES = 7, 5, 9  # numbers of the fields model.graph, graph.initializer and tensor.raw_data
_WAY = (_GRAPH, _CONSTANT, _VALUES)


def bytes_of_structure(data: bytes, most: int) -> int | None:
    """Bytes of an ONNX file without the values of its constants; None if the file and its graph have more than `most` fields.

    A field of two bytes takes more than a hundred in memory, so this bounds what reading the file takes.

    Raises:
        ValueError: The file is no protocol buffer.
    """
    values, entries, pending = 0, 0, [(0, len(data), 0)]
    while pending:
        place, end, depth = pending.pop()
        while place < end:
            key, place = _number(data, place, end)
            if key & 7 == 2:
                size, place = _number(data, place, end)
                if size > end - place:
                    raise ValueError("a field is longer than the file")
                if key >> 3 == _WAY[depth]:
                    if depth == len(_WAY) - 1:
                        values += size
                    else:
                        pending.append((place, place + size, depth + 1))
                place += size
            elif key & 7 == 0:
                _, place = _number(data, place, end)
            elif key & 7 in (1, 5):
                place += 8 if key & 7 == 1 else 4
            else:
                raise ValueError("a field has no kind")
            entries += 1
            if entries > most:
                return None
    return len(data) - values


def _number(data: bytes, place: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and the place after it."""
    number = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
        shift += 7
    raise ValueError("a number has no end")
