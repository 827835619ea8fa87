"""Which tokenizer a run uses: one loaded, one trained on its documents, or plain bytes.

All three are a :class:`ziggurat.data.huggingface.HuggingFaceTokenizer`.

>>> byte = byte_level()
>>> byte.encode("hé"), byte.decode([104, 195, 169])
([104, 195, 169], 'hé')
"""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Discriminator

from ziggurat.core import config, hub
from ziggurat.core.errors import DataError
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.sources import expand
from ziggurat.formats.tokenizer_document import BYTE_CHARACTERS

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut into words before merging: the pattern of Llama 3 and GPT-4 (cl100k)."""


class _SpecialTokens:
    """Rules of the nodes that make a tokenizer."""

    def __post_init__(self) -> None:
        here: Any = self
        named = [here.eos_token, here.bos_token, here.pad_token, *here.special_tokens]
        given = [token for token in named if token is not None]
        config.require(all(given), "special_tokens", given, "no empty token")
        config.require(len(set(given)) == len(given), "special_tokens", given, "distinct tokens")
        least = 256 + len(given)
        size = getattr(here, "vocab_size", least)
        config.require(size >= least, "vocab_size", size, f"at least {least}: bytes and specials")


@config.node
class TrainBpe(_SpecialTokens):
    """Tokenizer setting: byte-level BPE trained on the run's own documents."""

    kind: Literal["train_bpe"] = "train_bpe"
    vocab_size: int
    """Number of ids, the 256 bytes and the special tokens included."""
    eos_token: str = "<|endoftext|>"
    """Ends a document."""
    bos_token: str | None = None
    """Starts a document, if given."""
    pad_token: str | None = None
    """Fills rows, if given."""
    special_tokens: tuple[str, ...] = ()
    """Further tokens that are never split, such as ``<|im_start|>``."""
    min_frequency: int = 2
    """How often a pair must occur to be merged."""
    max_documents: int | None = None
    """Train on this many documents, the first ones; all if not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        config.require(self.min_frequency >= 0, "min_frequency", self.min_frequency, "0 or more")
        limit = self.max_documents
        config.require(limit is None or limit > 0, "max_documents", limit, "a positive number")


@config.node
class LoadTokenizer:
    """Tokenizer setting: a tokenizer directory of Hugging Face's layout, or a hub repository."""

    kind: Literal["load"] = "load"
    path: str
    """Directory with ``tokenizer.json`` or another file of a tokenizer, or ``owner/name``."""


@config.node
class ByteTokenizer(_SpecialTokens):
    """Tokenizer setting: one id per byte, equal to the byte; special tokens from 256 on."""

    kind: Literal["bytes"] = "bytes"
    eos_token: str = "<|endoftext|>"
    """Ends a document; id 256."""
    bos_token: str | None = None
    """Starts a document, if given."""
    pad_token: str | None = None
    """Fills rows, if given."""
    special_tokens: tuple[str, ...] = ()
    """Further tokens that are never split."""


TokenizerConfig = Annotated[TrainBpe | LoadTokenizer | ByteTokenizer, Discriminator("kind")]


def tokenizer(
    node: TrainBpe | LoadTokenizer | ByteTokenizer, documents: Iterable[str] = ()
) -> HuggingFaceTokenizer:
    """Build the tokenizer of a configuration.

    Args:
        node: the configuration.
        documents: texts to train on; only :class:`TrainBpe` reads them.

    Raises:
        DataError: the directory is no tokenizer, or there is nothing to train on.
    """
    if isinstance(node, LoadTokenizer):
        return HuggingFaceTokenizer.load(hub.local(expand(node.path), files=hub.TOKENIZER_FILES))
    roles = {"eos_token": node.eos_token, "bos_token": node.bos_token, "pad_token": node.pad_token}
    named = {role: text for role, text in roles.items() if text is not None}
    if isinstance(node, ByteTokenizer):
        return byte_level(named, node.special_tokens)
    return train_bpe(
        documents,
        node.vocab_size,
        named,
        node.special_tokens,
        min_frequency=node.min_frequency,
        max_documents=node.max_documents,
    )


def train_bpe(
    documents: Iterable[str],
    vocab_size: int,
    named: Mapping[str, str] | None = None,
    special_tokens: Sequence[str] = (),
    *,
    min_frequency: int = 2,
    max_documents: int | None = None,
) -> HuggingFaceTokenizer:
    """Train byte-level BPE; the same documents give the same tokenizer.

    Special tokens take the first ids, then the 256 bytes, then the merges. Sennrich, Haddow and
    Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016.

    Args:
        documents: texts, read once.
        vocab_size: number of ids; fewer if the documents hold too few pairs, with a warning.
        named: special tokens by role, by default ``{"eos_token": "<|endoftext|>"}``.
        special_tokens: further tokens that are never split.
        min_frequency: how often a pair must occur to be merged.
        max_documents: read this many documents.

    >>> bpe = train_bpe(["low lower lowest"] * 4, vocab_size=262)
    >>> bpe.vocab_size, bpe.decode(bpe.encode("lowest low"))
    (262, 'lowest low')
    """
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    named = {"eos_token": "<|endoftext|>"} if named is None else named
    backend = tokenizers.Tokenizer(models.BPE())
    _byte_level_parts(backend)
    specials = list(dict.fromkeys([*named.values(), *special_tokens]))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = itertools.islice(documents, max_documents)
    first = next(texts, None)
    if first is None:
        raise DataError("tokenizer training", found="no documents", expected="at least one")
    backend.train_from_iterator(itertools.chain([first], texts), trainer)
    _put_bos_first(backend, named.get("bos_token"))
    made = HuggingFaceTokenizer(backend, named)
    if made.vocab_size < vocab_size:
        logger.warning(
            "tokenizer training: %d ids instead of %d, the documents hold no more frequent pairs",
            made.vocab_size,
            vocab_size,
        )
    return made


def byte_level(
    named: Mapping[str, str] | None = None, special_tokens: Sequence[str] = ()
) -> HuggingFaceTokenizer:
    """Build the tokenizer with one id per byte, equal to the byte, and special tokens from 256
    on."""
    import tokenizers
    from tokenizers import models

    named = {"eos_token": "<|endoftext|>"} if named is None else named
    vocabulary = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    _byte_level_parts(backend)
    # All at once: the library builds its matcher anew with each call.
    backend.add_tokens(
        [
            tokenizers.AddedToken(text, special=True, normalized=False)
            for text in dict.fromkeys([*named.values(), *special_tokens])
        ]
    )
    _put_bos_first(backend, named.get("bos_token"))
    return HuggingFaceTokenizer(backend, named)


def _byte_level_parts(backend: "tokenizers.Tokenizer") -> None:
    from tokenizers import Regex, decoders, pre_tokenizers

    backend.pre_tokenizer = cast(
        Any,
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    )
    backend.decoder = cast(Any, decoders.ByteLevel())


def _put_bos_first(backend: "tokenizers.Tokenizer", bos: str | None) -> None:
    """Let the backend start every text with bos, if there is one."""
    from tokenizers import processors

    if bos is not None:
        backend.post_processor = cast(
            Any,
            processors.TemplateProcessing(
                single=f"{bos}:0 $A:0",
                pair=f"{bos}:0 $A:0 {bos}:1 $B:1",
                special_tokens=[(bos, backend.token_to_id(bos))],
            ),
        )
