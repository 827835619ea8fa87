"""Decode ids one at a time into text that never ends in half a character.

>>> from ziggurat.data.tokenizers import byte_level
>>> stream = StreamDecoder(byte_level())
>>> [stream.push(byte) for byte in "né".encode()], stream.finish()
(['n', '', 'é'], '')
"""

import codecs
import re

from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.formats.tokenizer_document import BYTE_CHARACTERS

_BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
_FALLBACK = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class StreamDecoder:
    """Decoder of a growing sequence of ids, which yields text as soon as it is complete.

    The pieces joined, :meth:`finish` included, equal ``tokenizer.decode`` of all ids. A piece may
    be empty: bytes of an unfinished character wait for the rest. Byte-level tokenizers decode bytes
    as they come; for the others a short window of ids is decoded again at each step.

    Args:
        tokenizer: whose ids these are.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, *, skip_special_tokens: bool = True):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids: list[int] = []
        self._window = self._read = 0
        self._emitted: list[str] = []
        self._byte_level = tokenizer.decodes_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes."""
        if self._skip and token in self._tokenizer.special_ids:
            return ""
        if self._byte_level:
            return self._utf8.decode(self._token_bytes(token))
        self._ids.append(token)
        if self._tokenizer.cleans_spaces or self._unfinished(token):
            return ""
        before = self._decode(self._ids[self._window : self._read])
        after = self._decode(self._ids[self._window :])
        if after.endswith("\ufffd") or not after.startswith(before):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return self._emit(after[len(before) :])

    def finish(self) -> str:
        """Text that was held back; call once, at the end."""
        if self._byte_level:
            return self._utf8.decode(b"", final=True)
        whole, emitted = self._decode(self._ids), "".join(self._emitted)
        assert whole.startswith(emitted), "a decoder whose text depends on later tokens"
        return self._emit(whole[len(emitted) :])

    def _emit(self, text: str) -> str:
        self._emitted.append(text)
        return text

    def _decode(self, ids: list[int]) -> str:
        # Special tokens are gone already where they should be; an empty window has no text.
        return self._tokenizer.decode(ids, skip_special_tokens=False) if ids else ""

    def _token_bytes(self, token: int) -> bytes:
        text = self._tokenizer.backend.id_to_token(token) or ""
        if all(character in _BYTES for character in text):
            return bytes(_BYTES[character] for character in text)
        return text.encode()

    def _unfinished(self, token: int) -> bool:
        """Whether ``token`` is one byte of a run, which is decoded as a whole.

        One bad byte at its end would turn all of the run into U+FFFD.
        """
        return _FALLBACK.fullmatch(self._tokenizer.backend.id_to_token(token) or "") is not None
