"""The columns of a trace file and their encodings."""

import pyarrow as pa

from nearbank.trace.operation import FORMAT_FIELDS, NUMBERS

_WORDS = pa.dictionary(pa.int16(), pa.string())
_INTEGERS = {"pairs": pa.int64()}

COLUMNS = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("phase", _WORDS, nullable=False),
        pa.field("sequence", pa.int32(), nullable=False),
        pa.field("layer", pa.int16(), nullable=False),
        pa.field("op", _WORDS, nullable=False),
        pa.field("name", _WORDS, nullable=False),
        *(pa.field(name, _INTEGERS.get(name, pa.int32())) for name in NUMBERS),
        *(pa.field(name, _WORDS) for name in FORMAT_FIELDS),
        pa.field("time_ns", pa.int64()),
        pa.field("holder", pa.int32()),
    ]
)
SINCE_VERSION_2 = ("shared", "holder")  # absent from older files, where nothing was shared
WORD_COLUMNS = [field.name for field in COLUMNS if pa.types.is_dictionary(field.type)]
DELTA_COLUMNS = {field.name: "DELTA_BINARY_PACKED" for field in COLUMNS if field.name not in WORD_COLUMNS}
