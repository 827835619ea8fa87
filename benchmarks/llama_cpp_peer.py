"""llama.cpp as a peer of benchmarks: a server in a process of another Python, which has the package
xllamacpp (prebuilt wheels with llama.cpp's own server), and its files at other widths."""

import json
import os
import subprocess
from pathlib import Path

SERVER = """
import json, sys, threading, time
import xllamacpp
path, threads, streams = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx, params.n_parallel = 1024 * streams, streams
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print(json.dumps({"version": xllamacpp.__version__}), flush=True)

def ask(prompt, count, into):
    request = {"prompt": prompt, "n_predict": count, "max_tokens": count, "temperature": 0}
    into.append(server.handle_completions(request | {"ignore_eos": True, "cache_prompt": False}))

for line in sys.stdin:
    prompts, count = json.loads(line)
    answers = []
    each = [threading.Thread(target=ask, args=(p, count, answers)) for p in prompts]
    begun = time.perf_counter()
    for one in each:
        one.start()
    for one in each:
        one.join()
    seconds = time.perf_counter() - begun
    timings = [a["timings"] for a in answers]
    found = {"seconds": seconds, "generated": [t["predicted_n"] for t in timings]}
    found["decode"] = timings[0]["predicted_per_second"]
    print(json.dumps(found), flush=True)
"""


def convert(source: Path, target: Path, kind: str) -> None:
    """Write a GGUF file again with its matrices in another type (``F32``, ``Q8_0``, ``Q4_1``)."""
    import gguf

    reader = gguf.GGUFReader(source)
    wanted = gguf.GGMLQuantizationType[kind]
    name = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, name)
    for field in reader.fields.values():
        skipped = ("general.architecture", "general.file_type", "general.quantization_version")
        if field.name.startswith("GGUF.") or field.name in skipped:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        if values.ndim < 2 or kind == "F32":
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, gguf.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaServer:
    """The server, asked for the same number of tokens of each prompt.

    Args:
        python: one with xllamacpp.
        path: a GGUF file.
        streams: most prompts together.
        count: tokens to generate of each.
    """

    def __init__(self, python: str, path: Path, streams: int, count: int):
        self._count = count
        self._process = subprocess.Popen(
            [python, "-c", SERVER, str(path), str(os.cpu_count()), str(streams)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = self._read()["version"]
        self.decode = 0.0
        """Tokens/s of the last call's first stream, its prompt not counted."""

    def __call__(self, prompts: list[list[int]]) -> float:
        """Seconds until all streams have ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([prompts, self._count]) + "\n")
        self._process.stdin.flush()
        found = self._read()
        assert found["generated"] == [self._count] * len(prompts), found
        self.decode = found["decode"]
        return found["seconds"]

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict:
        assert self._process.stdout is not None
        while True:  # llama.cpp prints on standard output too
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit("llama.cpp: the process ended; run its Python by hand to see why")
            if line.startswith("{"):
                return json.loads(line)
