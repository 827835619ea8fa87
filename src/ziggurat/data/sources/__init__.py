"""Where documents come from, in one fixed order: text files, JSON lines, Parquet, ArrayRecord,
Hugging Face data sets on disk and WebDataset shards, on this machine or in an object store.

A source is a configuration node; :func:`read` yields its documents sorted by file name and then as
they stand in the file. A document is known by its file, named as the run file names it, and its
number there, so its identity is the same on every machine.

>>> source = TextFiles(path="{stdlib}/json", glob="*.py", max_documents=2)
>>> [document.file for document in read([source])]
['{stdlib}/json/__init__.py', '{stdlib}/json/decoder.py']
"""

from ziggurat.data.sources.files import SourceFile, expand, list_files, signature
from ziggurat.data.sources.nodes import (
    ArrayRecords,
    HuggingFaceDataset,
    JsonLines,
    Parquet,
    Source,
    TextFiles,
    WebDataset,
    views,
)
from ziggurat.data.sources.reading import read
from ziggurat.data.sources.records import Document, ReadReport

__all__ = [
    "ArrayRecords",
    "Document",
    "HuggingFaceDataset",
    "JsonLines",
    "Parquet",
    "ReadReport",
    "Source",
    "SourceFile",
    "TextFiles",
    "WebDataset",
    "expand",
    "list_files",
    "read",
    "signature",
    "views",
]
