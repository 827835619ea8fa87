"""Config and tokenizer from a GGUF file."""

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import GgufFile
from ziggurat.models.conversion.gguf_keys import sampling_defaults


def tokenizer_of(file: GgufFile) -> HuggingFaceTokenizer:
    """The tokenizer that a GGUF file describes."""
    import tokenizers

    from ziggurat.formats.gguf_tokenizer import tokenizer_json

    pieces = file.tokenizer()
    ids = {"bos_token": pieces.bos_id, "eos_token": pieces.eos_id}
    ids |= {"unk_token": pieces.unknown_id, "pad_token": pieces.padding_id}
    named = {role: pieces.tokens[number] for role, number in ids.items() if number is not None}
    backend = tokenizers.Tokenizer.from_str(tokenizer_json(pieces))
    templates = {} if pieces.chat_template is None else {"default": pieces.chat_template}
    prefix = "tokenizer.chat_template."
    templates |= {
        key.removeprefix(prefix): text
        for key, text in file.metadata.items()
        if key.startswith(prefix)
    }
    ends = (pieces.eot_id, file.metadata.get("tokenizer.ggml.eom_token_id"))
    return HuggingFaceTokenizer(
        backend,
        named,
        end_ids=[number for number in ends if number is not None],
        chat_templates=templates,
        generation_config=sampling_defaults(file.metadata),
    )
