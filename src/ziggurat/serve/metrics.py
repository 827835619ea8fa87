"""What the engine measures, in Prometheus' form under vLLM's names.

Only what is measured is exported; there is no key/value block or prefix-cache figure to tell.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ziggurat.serve.llm.engine import Engine, Timeline

LATENCY_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
CHOICES = (1, 2, 5, 10, 20, 50, 100)


class Metrics:
    """The measurements of one engine; a ``Monitor``.

    Args:
        model_name: the label ``model_name`` of every series.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, model_name: str):
        self._registry, self._model = CollectorRegistry(), model_name

        def histogram(
            name: str, text: str, buckets: tuple[float | int, ...] = LATENCY_S
        ) -> Histogram:
            labels = ["model_name"]
            full = Histogram(f"vllm:{name}", text, labels, buckets=buckets, registry=self._registry)
            return full.labels(model_name)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vllm:{name}", text, ["model_name", *labels], registry=self._registry)

        self._prompt = counter("prompt_tokens", "Prompt tokens.").labels(model_name)
        self._generated = counter("generation_tokens", "Generated tokens.").labels(model_name)
        self._success = counter("request_success", "Finished choices.", "finished_reason")
        self._first = histogram("time_to_first_token_seconds", "From arrival to first token.")
        self._between = histogram("inter_token_latency_seconds", "Between two tokens of a choice.")
        self._whole = histogram("e2e_request_latency_seconds", "From arrival to last token.")
        self._queue = histogram("request_queue_time_seconds", "In the queue.")
        self._inference = histogram("request_inference_time_seconds", "From queue to last token.")
        self._prefill = histogram("request_prefill_time_seconds", "From queue to first token.")
        self._decode = histogram("request_decode_time_seconds", "From first to last token.")
        self._prompt_size = histogram("request_prompt_tokens", "Prompt tokens.", TOKENS)
        self._output_size = histogram("request_generation_tokens", "Generated tokens.", TOKENS)
        self._n = histogram("request_params_n", "Choices asked for.", CHOICES)
        self._limit = histogram("request_params_max_tokens", "Token limit.", TOKENS)

    def watch(self, engine: Engine) -> None:
        """Become the engine's monitor and export its queue."""
        engine.monitor = self
        for name, read in (
            ("num_requests_running", lambda: engine.running),
            ("num_requests_waiting", lambda: engine.waiting),
        ):
            gauge = Gauge(f"vllm:{name}", "Requests.", ["model_name"], registry=self._registry)
            gauge.labels(self._model).set_function(read)

    def token(self, seconds_since_last: float | None) -> None:
        """A token came."""
        self._generated.inc()
        if seconds_since_last is not None:
            self._between.observe(seconds_since_last)

    def ended(self, timeline: Timeline) -> None:
        """A request left the engine; only one that was read to its end tells its times."""
        t = timeline
        for reason in t.finish_reasons:
            self._success.labels(self._model, reason).inc()
        if t.started is None or t.first_token is None or t.last_token is None:
            return
        self._prompt.inc(t.prompt_tokens)
        self._first.observe(t.first_token - t.submitted)
        if len(t.finish_reasons) < t.n:
            return
        self._whole.observe(t.last_token - t.submitted)
        self._queue.observe(t.started - t.submitted)
        self._inference.observe(t.last_token - t.started)
        self._prefill.observe(t.first_token - t.started)
        self._decode.observe(t.last_token - t.first_token)
        self._prompt_size.observe(t.prompt_tokens)
        self._output_size.observe(t.generated_tokens)
        self._n.observe(t.n)
        self._limit.observe(t.max_tokens)

    def text(self) -> bytes:
        """All series in Prometheus' text form."""
        return generate_latest(self._registry)
