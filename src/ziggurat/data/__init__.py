"""Data: sources, tokenizers, packing and a global order, such that the batch of step s is a
function of (config, seed, s) and of nothing else.

>>> import tempfile
>>> from pathlib import Path
>>> config = DataConfig(
...     sources=(TextFiles(path="{stdlib}/json", glob="*.py"),), sequence_length=16, batch_size=2
... )
>>> with tempfile.TemporaryDirectory() as cache:
...     rows = build(config, byte_level(), seed=0, cache=Path(cache))
...     batch = rows.batch(1000)
>>> batch["tokens"].shape, rows.documents_per_epoch
((2, 16), 5)
"""

from ziggurat.data.answers import AnswerDataset, build_answers
from ziggurat.data.config import DataConfig
from ziggurat.data.dataset import DocumentSpan, PackedDataset
from ziggurat.data.deduplicate import Deduplicate
from ziggurat.data.filter import Filter
from ziggurat.data.given import GrainSource, as_source, next_token_batch
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.image_sources import Digits, ImageArrays, ImageFolder, open_images
from ziggurat.data.image_text import ImageTextData, ImageTextDataset, build_image_text
from ziggurat.data.images import ImageData, ImageDataset, build_images
from ziggurat.data.mixture import Mixture, Stage
from ziggurat.data.opening import Dataset, build, documents, tokenizer_for
from ziggurat.data.packing import BestFit, Concat, FirstFit, Single
from ziggurat.data.sources import (
    ArrayRecords,
    Document,
    HuggingFaceDataset,
    JsonLines,
    Parquet,
    TextFiles,
    WebDataset,
    read,
)
from ziggurat.data.store import TokenStore, tokenise
from ziggurat.data.stream import StreamedDataset
from ziggurat.data.streaming import StreamDecoder
from ziggurat.data.tokenizers import (
    ByteTokenizer,
    LoadTokenizer,
    TokenizerConfig,
    TrainBpe,
    byte_level,
    tokenizer,
    train_bpe,
)
from ziggurat.data.vocabulary import check_ids

__all__ = [
    "AnswerDataset",
    "ArrayRecords",
    "BestFit",
    "ByteTokenizer",
    "Concat",
    "DataConfig",
    "Dataset",
    "Deduplicate",
    "Digits",
    "Document",
    "DocumentSpan",
    "Filter",
    "FirstFit",
    "GrainSource",
    "HuggingFaceDataset",
    "HuggingFaceTokenizer",
    "ImageArrays",
    "ImageData",
    "ImageDataset",
    "ImageFolder",
    "ImageTextData",
    "ImageTextDataset",
    "JsonLines",
    "LoadTokenizer",
    "Mixture",
    "PackedDataset",
    "Parquet",
    "Single",
    "Stage",
    "StreamDecoder",
    "StreamedDataset",
    "TextFiles",
    "TokenStore",
    "TokenizerConfig",
    "TrainBpe",
    "WebDataset",
    "as_source",
    "build",
    "build_answers",
    "build_image_text",
    "build_images",
    "byte_level",
    "check_ids",
    "documents",
    "next_token_batch",
    "open_images",
    "read",
    "tokenise",
    "tokenizer",
    "tokenizer_for",
    "train_bpe",
]
