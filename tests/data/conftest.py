"""Tokenizers of each family, built in memory."""

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.sources import TextFiles, read
from ziggurat.data.tokenizers import byte_level, train_bpe

NAMED = {"eos_token": "</s>", "bos_token": "<s>"}


def _bpe():
    source = TextFiles(path="{stdlib}/json", glob="*.py")
    documents = [document.text for document in read([source])]
    return train_bpe(documents, 700, NAMED, ["<|im_start|>", "<é x>"])


def _byte_fallback():
    """A tokenizer built as Llama 2's: Metaspace, bytes as ``<0xXX>`` tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁abcdefghijklmnopqrstuvwxyzHW.,'", "▁a", "▁H", "el", "lo", "▁w", "or", "ld"]
    merges = [("▁", "a"), ("▁", "H"), ("e", "l"), ("l", "o"), ("▁", "w"), ("o", "r"), ("l", "d")]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return HuggingFaceTokenizer(
        backend, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    )


def _word_piece():
    """A tokenizer built as BERT's, which cleans spaces when it decodes."""
    pieces = ["[UNK]", "[CLS]", "[SEP]", "do", "n", "'", "t", "a", "##b", ".", ",", "!", "s", "ve"]
    backend = tokenizers.Tokenizer(
        models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return HuggingFaceTokenizer(backend, names | {"clean_up_tokenization_spaces": True})


MAKERS = {
    "bytes": lambda: byte_level(NAMED),
    "bpe": _bpe,
    "byte_fallback": _byte_fallback,
    "word_piece": _word_piece,
}


@pytest.fixture(scope="session")
def make_tokenizer():
    """A fresh tokenizer of a family."""
    return lambda kind: MAKERS[kind]()


@pytest.fixture(scope="session")
def bpe():
    """Byte-level BPE of 700 ids, trained on a little Python."""
    return _bpe()


@pytest.fixture(scope="session")
def families():
    """One tokenizer of each family."""
    return {kind: make() for kind, make in MAKERS.items()}
