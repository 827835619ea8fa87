"""Metrics of engines and embedders in Prometheus' form, under vLLM's names.

Only what is measured is exported: there are no series of adapters or of speculative decoding.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ziggurat.serve.llm.engine import Engine
from ziggurat.serve.llm.request import Timeline

LATENCY_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICES = (1, 2, 5, 10, 20, 50, 100)

LABELS = ("model_name", "engine")
ENGINE = "0"
"""The label ``engine``: one model has one engine here."""

_HISTOGRAMS = {
    "time_to_first_token_seconds": ("From arrival to first token.", LATENCY_S),
    "inter_token_latency_seconds": ("Between two tokens of a choice.", LATENCY_S),
    "request_time_per_output_token_seconds": ("Mean time of a token after the first.", LATENCY_S),
    "e2e_request_latency_seconds": ("From arrival to last token.", LATENCY_S),
    "request_queue_time_seconds": ("In the queue.", LATENCY_S),
    "request_inference_time_seconds": ("From queue to last token.", LATENCY_S),
    "request_prefill_time_seconds": ("From queue to first token.", LATENCY_S),
    "request_decode_time_seconds": ("From first to last token.", LATENCY_S),
    "request_prompt_tokens": ("Prompt tokens.", TOKENS),
    "request_generation_tokens": ("Generated tokens.", TOKENS),
    "request_params_n": ("Choices asked for.", CHOICES),
    "request_params_max_tokens": ("Token limit.", TOKENS),
    "iteration_tokens_total": ("Tokens in one step of the engine.", STEP_TOKENS),
}


class Metrics:
    """Prometheus metrics of all models of a server.

    Args:
        registry: what they are registered with, once.
    """

    def __init__(self, registry: CollectorRegistry):
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vllm:{name}", text, (*LABELS, *labels), registry=registry)

        self.prompt = counter("prompt_tokens", "Prompt tokens.")
        self.generated = counter("generation_tokens", "Generated tokens.")
        self.success = counter("request_success", "Finished choices.", "finished_reason")
        self.histograms = {
            name: Histogram(f"vllm:{name}", text, LABELS, buckets=buckets, registry=registry)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._engines: dict[str, Engine] = {}
        self._registry = registry
        registry.register(self)

    def watch(self, engine: Engine, model_name: str) -> None:
        """Register as the engine's monitor and export its state."""
        engine.monitor = ModelMetrics(self, model_name)
        self._engines[model_name] = engine
        facts = {
            "block_size": engine.settings.block_size,
            "num_gpu_blocks": engine.statistics().blocks_total,
            "enable_prefix_caching": engine.settings.prefix_cache,
        }
        names = [*LABELS, *facts]
        info = Gauge("vllm:cache_config_info", "The cache.", names, registry=self._registry)
        info.labels(model_name, ENGINE, *map(str, facts.values())).set(1)

    def describe(self) -> Iterator[Metric]:
        """Names of the metric families of :meth:`collect`."""
        return _state([])

    def collect(self) -> Iterator[Metric]:
        """Read the engines' state; called by the Prometheus registry."""
        return _state(list(self._engines.items()))


def _state(engines: list[tuple[str, Engine]]) -> Iterator[Metric]:
    now = [([name, ENGINE], engine.statistics()) for name, engine in engines]
    gauges = {
        "num_requests_running": ("Requests being served.", "running"),
        "num_requests_waiting": ("Requests in the queue.", "waiting"),
        "kv_cache_usage_perc": ("Part of the cache in use, 1 is all.", "cache_usage"),
    }
    counters = {
        "prefix_cache_queries": ("Prompt tokens looked up.", "prefix_queries"),
        "prefix_cache_hits": ("Prompt tokens found in the cache.", "prefix_hits"),
        "num_preemptions": ("Requests sent back to the queue.", "preemptions"),
    }
    for kind, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
        for name, (text, field) in table.items():
            family = kind(f"vllm:{name}", text, labels=LABELS)
            for labels, found in now:
                family.add_metric(labels, getattr(found, field))
            yield family


class ModelMetrics:
    """Metrics of one model; a ``Monitor``."""

    def __init__(self, metrics: Metrics, model_name: str):
        self._labels = (model_name, ENGINE)
        self._prompt = metrics.prompt.labels(*self._labels)
        self._generated = metrics.generated.labels(*self._labels)
        self._success = metrics.success
        self._of = {name: h.labels(*self._labels) for name, h in metrics.histograms.items()}

    def token(self, seconds_since_last: float | None) -> None:
        """Count a generated token."""
        self._generated.inc()
        if seconds_since_last is not None:
            self._of["inter_token_latency_seconds"].observe(seconds_since_last)

    def step(self, tokens: int) -> None:
        """Count a step of this many tokens, prompt and generated ones."""
        self._of["iteration_tokens_total"].observe(tokens)

    def ended(self, timeline: Timeline) -> None:
        """Count a request that left the engine; only one that was read to its end is timed."""
        t = timeline
        for reason in t.finish_reasons:
            self._success.labels(*self._labels, reason).inc()
        if t.started is None or t.first_token is None or t.last_token is None:
            return
        self._prompt.inc(t.prompt_tokens)
        self._of["time_to_first_token_seconds"].observe(t.first_token - t.submitted)
        if len(t.finish_reasons) < t.n:
            return
        decode = t.last_token - t.first_token
        observed = {
            "e2e_request_latency_seconds": t.last_token - t.submitted,
            "request_queue_time_seconds": t.started - t.submitted,
            "request_inference_time_seconds": t.last_token - t.started,
            "request_prefill_time_seconds": t.first_token - t.started,
            "request_decode_time_seconds": decode,
            "request_prompt_tokens": t.prompt_tokens,
            "request_generation_tokens": t.generated_tokens,
            "request_params_n": t.n,
            "request_params_max_tokens": t.max_tokens,
        }
        if t.generated_tokens > t.n:
            per_token = decode * t.n / (t.generated_tokens - t.n)
            observed["request_time_per_output_token_seconds"] = per_token
        for name, value in observed.items():
            self._of[name].observe(value)

    def transcribed(self, tokens: int, seconds: float) -> None:
        """Count a transcription of this many tokens."""
        self._generated.inc(tokens)
        self._success.labels(*self._labels, "stop").inc()
        self._of["e2e_request_latency_seconds"].observe(seconds)
        self._of["request_generation_tokens"].observe(tokens)

    def embedded(self, prompt_tokens: int, seconds: float) -> None:
        """Count embedded texts of this many tokens."""
        self._prompt.inc(prompt_tokens)
        self._success.labels(*self._labels, "stop").inc()
        self._of["e2e_request_latency_seconds"].observe(seconds)
        self._of["request_prompt_tokens"].observe(prompt_tokens)
