"""Tiny Llama checkpoints in the quantised layouts of other programs, packed here by hand.

Each packer draws codes and scales, writes them as the layout's own documentation says, loop by
loop, and gives beside them the float matrix ``[out, in]`` that they stand for.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from ziggurat.data.tokenizers import byte_level
from ziggurat.formats import write_sharded

WIDTH, HIDDEN, VOCABULARY, LAYERS = 128, 192, 260, 2
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
MODULES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH // 2, WIDTH),
    "self_attn.v_proj": (WIDTH // 2, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH),
    "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}
Parts = dict[str, np.ndarray]
Packer = Callable[[np.random.Generator, int, int], tuple[Parts, np.ndarray]]
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]


@dataclasses.dataclass(frozen=True)
class Case:
    """A layout with its settings."""

    settings: dict[str, Any]
    packer: Packer


def words(values: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """Unsigned values in int32 words along an axis, the first in the low bits."""
    moved = np.moveaxis(values.astype(np.uint64), axis, 0)
    each = 32 // bits
    out = np.zeros((-(-len(moved) // each), *moved.shape[1:]), np.uint64)
    for i, row in enumerate(moved):
        out[i // each] |= row << np.uint64(bits * (i % each))
    return np.moveaxis(out.astype(np.uint32).view(np.int32), 0, axis)


def gptq(
    bits: int, group: int, *, version: int = 1, order: bool = False, symmetric: bool = False
) -> Case:
    def packer(rng, rows, columns):
        size = columns if group == -1 else group
        groups, half = columns // size, 1 << (bits - 1)
        codes = rng.integers(0, 2 * half, (columns, rows))
        zeros = rng.integers(1, 2 * half, (groups, rows))  # version 1 cannot hold 0
        zeros = np.full_like(zeros, half) if symmetric else zeros
        scales = rng.uniform(0.5, 1, (groups, rows)).astype(np.float16) / np.float16(half * 8)
        index = np.arange(columns) // size
        index = rng.permutation(index) if order else index
        floats = (codes - zeros[index]) * scales[index].astype(np.float32)
        parts = {
            "qweight": words(codes, bits, 0),
            "qzeros": words(zeros - (version == 1), bits, 1),
            "scales": scales,
            "g_idx": index.astype(np.int32),
        }
        return parts, floats.T.astype(np.float32)

    layout = {"checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric}
    return Case(settings | layout | {"desc_act": order}, packer)


def awq(group: int) -> Case:
    def packer(rng, rows, columns):
        order, groups = [0, 2, 4, 6, 1, 3, 5, 7], columns // group
        codes, zeros = (rng.integers(0, 16, (n, rows)) for n in (columns, groups))
        scales = rng.uniform(0.5, 1, (groups, rows)).astype(np.float16) / np.float16(64)

        def packed(values):
            out = np.zeros((len(values), rows // 8), np.uint32)
            for word in range(rows // 8):
                for place, column in enumerate(order):
                    out[:, word] |= values[:, 8 * word + column].astype(np.uint32) << (4 * place)
            return out.view(np.int32)

        def spread(values):
            return np.repeat(values, group, axis=0)

        floats = (codes - spread(zeros)) * spread(scales).astype(np.float32)
        parts = {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}
        return parts, floats.T.astype(np.float32)

    settings = {"bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Case({"quant_method": "awq", **settings, "modules_to_not_convert": ["lm_head"]}, packer)


def drawn_fp8(rng, *shape: int) -> np.ndarray:
    return rng.normal(0, 60, shape).astype(ml_dtypes.float8_e4m3fn)


def fp8_blocks(rng, rows, columns):
    values, floats = drawn_fp8(rng, rows, columns), np.zeros((rows, columns), np.float32)
    scales = rng.uniform(0.5, 1, (-(-rows // 128), -(-columns // 128))).astype(np.float32) / 1000
    for i in range(rows):
        for j in range(columns):
            floats[i, j] = np.float32(values[i, j]) * scales[i // 128, j // 128]
    return {"weight": values, "weight_scale_inv": scales}, floats


def fp8_tensor(rng, rows, columns):
    values, scale = drawn_fp8(rng, rows, columns), np.float32(rng.uniform(0.5, 1) / 1000)
    parts = {"weight": values, "weight_scale": scale.reshape(()), "input_scale": np.float32(0.02)}
    return parts, values.astype(np.float32) * scale


def fp8_channel(rng, rows, columns):
    values = drawn_fp8(rng, rows, columns)
    scale = rng.uniform(0.5, 1, (rows, 1)).astype(np.float32) / 1000
    return {"weight": values, "weight_scale": scale}, values.astype(np.float32) * scale


def _e2m1(rng, rows, columns):
    codes = rng.integers(0, 16, (rows, columns))
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).astype(np.uint8)
    return packed, np.take(np.array(E2M1, np.float32), codes)


def nvfp4(end: str) -> Packer:
    """Values under ``end``: ModelOpt's ``weight`` or compressed-tensors' ``weight_packed``."""

    def packer(rng, rows, columns):
        packed, values = _e2m1(rng, rows, columns)
        scales = rng.uniform(50, 400, (rows, columns // 16)).astype(ml_dtypes.float8_e4m3fn)
        factor = np.float32(2.0**-14 * 1.1)
        wide = np.repeat(scales.astype(np.float32), 16, axis=1)
        parts = {end: packed, "weight_scale": scales}
        if end == "weight":
            parts |= {"weight_scale_2": factor.reshape(()), "input_scale": np.float32(0.01)}
        else:
            inverse = np.float32(1) / factor
            parts |= {"weight_global_scale": inverse.reshape(1)}
            parts |= {"input_global_scale": np.ones(1, np.float32)}
        return parts, values * (wide * factor)

    return packer


def mxfp4_packed(rng, rows, columns):
    packed, values = _e2m1(rng, rows, columns)
    exponents = rng.integers(119, 123, (rows, columns // 32)).astype(np.uint8)
    wide = np.repeat(np.exp2(exponents.astype(np.float32) - 127), 32, axis=1)
    return {"weight_packed": packed, "weight_scale": exponents}, values * wide


def _table(kind: str) -> np.ndarray:
    if kind == "fp4":
        sizes = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float64) / 12
        return np.concatenate([sizes, -sizes]).astype(np.float32)
    normal = [-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
    normal += [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0]
    normal += [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    normal += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1]
    return np.array(normal, np.float32)


def bitsandbytes(kind: str, *, nested: bool) -> Case:
    def packer(rng, rows, columns):
        table, block = _table(kind), 64
        codes = rng.integers(0, 16, rows * columns)
        count = codes.size // block
        state = {"quant_type": kind, "blocksize": block, "dtype": "float16"}
        parts = {"weight": ((codes[0::2] << 4) | codes[1::2]).astype(np.uint8)[:, None]}
        if nested:
            dynamic = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            numbers = rng.integers(128, 256, count).astype(np.uint8)
            outer = rng.uniform(0.05, 0.1, -(-count // 256)).astype(np.float32)
            offset = 0.11
            absmax = np.zeros(count, np.float32)
            for i, number in enumerate(numbers):
                absmax[i] = dynamic[number] * outer[i // 256] + np.float32(offset)
            state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
            parts |= {"weight.nested_absmax": outer, "weight.nested_quant_map": dynamic}
            parts["weight.absmax"] = numbers
        else:
            absmax = rng.uniform(0.1, 0.2, count).astype(np.float32)
            parts["weight.absmax"] = absmax
        state["shape"] = [rows, columns]
        parts["weight.quant_map"] = table
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        parts[f"weight.quant_state.bitsandbytes__{kind}"] = text
        return parts, (table[codes] * np.repeat(absmax, block)).reshape(rows, columns)

    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "llm_int8_skip_modules": None}
    return Case({"quant_method": "bitsandbytes", **settings}, packer)


def llm_int8(rng, rows, columns):
    values = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    largest = rng.uniform(0.1, 0.3, rows).astype(np.float32)
    parts = {"weight": values, "SCB": largest, "weight_format": np.array(0, np.uint8)}
    return parts, values * (largest[:, None] / 127).astype(np.float32)


def pack_quantized(bits: int, group: int | None, *, order: bool = False) -> Packer:
    """compressed-tensors' integers with zero points."""

    def packer(rng, rows, columns):
        size, half = group or columns, 1 << (bits - 1)
        codes, zeros = (rng.integers(-half, half, (rows, n)) for n in (columns, columns // size))
        scales = rng.uniform(0.5, 1, zeros.shape).astype(np.float16) / np.float16(half * 8)
        index = np.arange(columns) // size
        index = rng.permutation(index) if order else index
        parts = {
            "weight_packed": words(codes + half, bits, 1),
            "weight_zero_point": words(zeros + half, bits, 0),
            "weight_scale": scales,
            "weight_shape": np.array([rows, columns], np.int64),
        }
        if order:
            parts["weight_g_idx"] = index.astype(np.int32)
        return parts, ((codes - zeros[:, index]) * scales[:, index].astype(np.float32))

    return packer


def compressed(format: str, weights: dict[str, Any], inputs: Any = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    settings = {"format": format, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    return {"quant_method": "compressed-tensors", **settings}


_INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}
_INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}
_FLOAT = {"type": "float", "symmetric": True}
_STATIC = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
_FP4 = _FLOAT | {"num_bits": 4}
_BLOCKS = _FLOAT | {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]}


def _blocks_as_scale(rng, rows, columns):
    parts, floats = fp8_blocks(rng, rows, columns)
    return {"weight": parts["weight"], "weight_scale": parts["weight_scale_inv"]}, floats


CASES: dict[str, Case] = {
    "gptq-4bit": gptq(4, 64),
    "gptq-4bit-symmetric": gptq(4, 32, symmetric=True),
    "gptq-4bit-ordered": gptq(4, 32, order=True),
    "gptq-8bit-v2": gptq(8, -1, version=2),
    "gptq-8bit-ordered": gptq(8, 64, version=2, order=True),
    "awq": awq(64),
    "fp8-blocks": Case(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        fp8_blocks,
    ),
    "fp8-tensor": Case({"quant_method": "fp8", "activation_scheme": "static"}, fp8_tensor),
    "fp8-channel": Case({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200}, fp8_channel),
    "modelopt-nvfp4": Case({"quant_method": "modelopt", "quant_algo": "NVFP4"}, nvfp4("weight")),
    "modelopt-fp8": Case({"quant_method": "modelopt", "quant_algo": "FP8"}, fp8_tensor),
    "compressed-nvfp4": Case(
        compressed(
            "nvfp4-pack-quantized",
            _FP4 | {"strategy": "tensor_group", "group_size": 16},
            _FP4 | {"strategy": "tensor_group", "group_size": 16, "dynamic": "local"},
        ),
        nvfp4("weight_packed"),
    ),
    "compressed-mxfp4": Case(
        compressed("mxfp4-pack-quantized", _FP4 | {"strategy": "group", "group_size": 32}),
        mxfp4_packed,
    ),
    "compressed-fp8-static": Case(
        compressed(
            "float-quantized", _FLOAT | {"num_bits": 8, "strategy": "channel"}, _STATIC | _FLOAT
        ),
        fp8_channel,
    ),
    "compressed-fp8-blocks": Case(compressed("float-quantized", _BLOCKS), _blocks_as_scale),
    "compressed-int4": Case(compressed("pack-quantized", _INT4), pack_quantized(4, 32)),
    "compressed-int4-ordered": Case(
        compressed("pack-quantized", _INT4 | {"actorder": "group"}),
        pack_quantized(4, 32, order=True),
    ),
    "compressed-int8": Case(compressed("pack-quantized", _INT8), pack_quantized(8, None)),
    "bitsandbytes-nf4": bitsandbytes("nf4", nested=False),
    "bitsandbytes-nf4-nested": bitsandbytes("nf4", nested=True),
    "bitsandbytes-fp4": bitsandbytes("fp4", nested=False),
    "bitsandbytes-int8": Case({"quant_method": "bitsandbytes", "load_in_8bit": True}, llm_int8),
}
"""Layouts by name."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A quantised checkpoint, its float twin, and the bytes of its quantised modules."""

    packed: Path
    plain: Path
    module_bytes: int


def floats(rng) -> Parts:
    """The tensors that no method quantises."""

    def norm():
        return rng.uniform(0.8, 1.2, WIDTH).astype(np.float32)

    made = {
        "model.embed_tokens.weight": rng.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32),
        "lm_head.weight": rng.normal(0, 0.1, (VOCABULARY, WIDTH)).astype(np.float32),
        "model.norm.weight": norm(),
    }
    for layer in range(LAYERS):
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{layer}.{name}.weight"] = norm()
    return made


def tensors_of(case: Case, left_out: tuple[str, ...] = ()) -> tuple[Parts, Parts, int]:
    """Packed tensors, float tensors, bytes of what is packed; modules ``left_out`` stay floats."""
    rng = np.random.default_rng(0)
    packed = floats(rng)
    plain, count = dict(packed), 0
    for layer in range(LAYERS):
        for module, (rows, columns) in MODULES.items():
            home = f"model.layers.{layer}.{module}"
            parts, whole = case.packer(rng, rows, columns)
            plain[f"{home}.weight"] = np.ascontiguousarray(whole)
            if home in left_out:
                packed[f"{home}.weight"] = plain[f"{home}.weight"]
                continue
            packed |= {f"{home}.{end}": np.ascontiguousarray(x) for end, x in parts.items()}
            count += sum(np.asarray(array).nbytes for array in parts.values())
    return packed, plain, count


def write_directory(directory: Path, tensors: Parts, settings: dict[str, Any] | None) -> Path:
    """A Hugging Face directory."""
    directory.mkdir(parents=True)
    byte_level().save(directory)
    config = CONFIG if settings is None else CONFIG | {"quantization_config": settings}
    (directory / "config.json").write_text(json.dumps(config))
    write_sharded(directory, tensors.items())
    return directory


def write(
    directory: Path, name: str, left_out: tuple[str, ...] = (), float_type: str = "float32"
) -> Written:
    """A case and its float twin; what no method quantises is of ``float_type``."""
    case = CASES[name]
    packed, plain, count = tensors_of(case, left_out)
    for own in floats(np.random.default_rng(0)):
        packed[own] = packed[own].astype(float_type)
    return Written(
        write_directory(directory / "packed", packed, case.settings),
        write_directory(directory / "plain", plain, None),
        count,
    )


SUPER_FLOATS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
SUPER_FLOATS |= {"IQ4_XS": (0,), "IQ4_NL": (0,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}
SUPER_FLOATS |= {"Q4_1": (0, 2), "Q5_1": (0, 2)}
"""Where in a block float16 numbers stand, by type."""
_SIZES = {"IQ4_NL": 0.002, "Q8_0": 0.001, "Q3_K": 0.002, "Q6_K": 5e-5, "IQ4_XS": 4e-5}


def random_blocks(rng, kind: str, rows: int, columns: int) -> np.ndarray:
    """Rows of blocks of random bytes, with moderate scales; ``gguf`` says what they stand for."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    for at in SUPER_FLOATS.get(kind, ()):
        scale = rng.uniform(0.5, 1, blocks.shape[:2]) * _SIZES.get(kind, 0.002)
        blocks[..., at : at + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = rng.integers(119, 123, blocks.shape[:2])
    return blocks.reshape(rows, -1)


GGUF_WIDTH = 256
GGUF_NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def write_gguf(directory: Path, kinds: Callable[[str], str]) -> tuple[Path, Path, int]:
    """A GGUF file, its twin of floats, and the bytes of its quantised tensors.

    Args:
        directory: where they go.
        kinds: type of the blocks of each matrix, by its name; ``F32``: floats.
    """
    rng, width = np.random.default_rng(0), GGUF_WIDTH
    shapes = {"token_embd.weight": (VOCABULARY, width), "output.weight": (VOCABULARY, width)}
    for layer in range(LAYERS):
        for name in GGUF_NAMES:
            rows = width // 2 if name in ("attn_k", "attn_v") else width
            shapes[f"blk.{layer}.{name}.weight"] = (rows, width)
    norms = ["output_norm.weight"]
    norms += [f"blk.{i}.{n}_norm.weight" for i in range(LAYERS) for n in ("attn", "ffn")]
    directory.mkdir(parents=True)
    files = [_gguf_writer(directory / name) for name in ("packed.gguf", "plain.gguf")]
    count = 0
    for name, shape in shapes.items():
        kind = kinds(name)
        if kind == "F32":
            array = rng.normal(0, 0.1, shape).astype(np.float32)
            for file in files:
                file.add_tensor(name, array)
            continue
        blocks, type_ = random_blocks(rng, kind, *shape), gguf.GGMLQuantizationType[kind]
        count += blocks.nbytes
        files[0].add_tensor(name, blocks, raw_dtype=type_)
        files[1].add_tensor(name, gguf.dequantize(blocks, type_).astype(np.float32))
    for name in norms:
        for file in files:
            file.add_tensor(name, np.ones(width, np.float32))
    for file in files:
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.write_tensors_to_file()
        file.close()
    return directory / "packed.gguf", directory / "plain.gguf", count


def _gguf_writer(path: Path) -> gguf.GGUFWriter:
    file = gguf.GGUFWriter(path, "llama")
    file.add_block_count(LAYERS)
    file.add_context_length(64)
    file.add_embedding_length(GGUF_WIDTH)
    file.add_feed_forward_length(GGUF_WIDTH)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(1e-5)
    vocabulary = json.loads(byte_level().backend.to_str())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)[:256]
    tokens += [f"<more{i}>" for i in range(VOCABULARY - len(tokens))]
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("smollm")
    file.add_token_list(tokens)
    file.add_token_types([1] * len(tokens))
    file.add_token_merges([])
    return file
