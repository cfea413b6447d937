"""Documents as Arrow record batches: what the text stage hands from step to step, and from process to process.

`text` is binary as it was read (UTF-8, halves of surrogate pairs and all), a string once it is clean; `source` names
the row or piece; `origin` is the number of the recipe's source.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow

from llmlab.data.sources import Document

SCHEMA = pyarrow.schema([("text", pyarrow.large_binary()), ("source", pyarrow.string()), ("origin", pyarrow.int32())])
ROWS, BYTES = 512, 1 << 20  # a batch is closed by the document that fills either


def batched(documents: Iterable[Document], rows: int = ROWS, size: int = BYTES) -> Iterator[Any]:
    """Record batches of documents, in order."""
    texts, sources, origins, held = list[bytes](), list[str](), list[int](), 0
    for document in documents:
        text = document.text.encode("utf-8", "surrogatepass")
        texts.append(text)
        sources.append(document.source)
        origins.append(document.origin)
        held += len(text)
        if len(texts) >= rows or held >= size:
            yield pyarrow.record_batch([texts, sources, origins], schema=SCHEMA)
            texts, sources, origins, held = [], [], [], 0
    if texts:
        yield pyarrow.record_batch([texts, sources, origins], schema=SCHEMA)


def raw_texts(batch: Any) -> list[str]:
    """The texts of a batch as they were read."""
    return [text.decode("utf-8", "surrogatepass") for text in batch["text"].to_pylist()]
