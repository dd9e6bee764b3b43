"""Writes pyarrow-*.parquet as data sets on the hub are written: python write.py, with pyarrow 26.0.1."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 6
table = pa.table(
    {
        "id": pa.array(range(ROWS), pa.int64()),
        "text": pa.array([f"Text {i}, wie schön.\n" for i in range(ROWS)], pa.large_string()),
        "meta": pa.array(
            [{"pile_set_name": ["ArXiv", "Books3"][i % 2], "score": i / 2, "tags": ["x"] * i} for i in range(ROWS)],
            pa.struct([("pile_set_name", pa.dictionary(pa.int32(), pa.string())), ("score", pa.float64()), ("tags", pa.list_(pa.string()))]),
        ),
        "messages": pa.array(
            [
                [{"content": f"{turn}?", "role": ["user", "assistant"][turn % 2]} for turn in range(i)]
                for i in range(ROWS)
            ],
            pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())])),
        ),
    }
)
folder = Path(__file__).parent
for version, compression in [("1.0", "snappy"), ("2.0", "zstd")]:
    name = folder / f"pyarrow-{version[0]}-{compression}.parquet"
    pq.write_table(
        table, name, compression=compression, data_page_version=version, row_group_size=4, store_schema=False
    )
