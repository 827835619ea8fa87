"""What a GGUF file says beside its weights."""

from ziggurat.checkpoint import GgufFile
from ziggurat.data import HuggingFaceTokenizer


def tokenizer_of(file: GgufFile) -> HuggingFaceTokenizer:
    """The tokenizer that a GGUF file describes."""
    import tokenizers

    from ziggurat.checkpoint.gguf_tokenizer import byte_level_bpe

    pieces = file.tokenizer()
    ids = {"bos_token": pieces.bos_id, "eos_token": pieces.eos_id}
    ids |= {"unk_token": pieces.unknown_id, "pad_token": pieces.padding_id}
    named = {role: pieces.tokens[number] for role, number in ids.items() if number is not None}
    backend = tokenizers.Tokenizer.from_str(byte_level_bpe(pieces))
    template = pieces.chat_template
    return HuggingFaceTokenizer(
        backend,
        named,
        end_ids=[] if pieces.eot_id is None else [pieces.eot_id],
        chat_templates={} if template is None else {"default": template},
    )
