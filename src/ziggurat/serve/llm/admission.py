"""How much may wait: bounds on each client's queue, so that no client takes another's place.

A client is an API key; without keys all requests are of one client.

>>> room = Admission(max_requests=1, max_tokens=100)
>>> waiting = room.enter("", [40, 30])
>>> room.enter("", [10])  # doctest: +ELLIPSIS
Traceback (most recent call last):
ziggurat.serve.errors.QueueFull: queue: found 1 requests waiting; expected fewer than 1; ...
>>> room.leave(waiting, 40), room.leave(waiting, 30)
(None, None)
>>> room.enter("", [10]).prompts
1
"""

import dataclasses
import threading
from collections.abc import Sequence

from ziggurat.serve.bodies import MAX_TEXTS
from ziggurat.serve.errors import ContextTooLong, QueueFull, RequestError
from ziggurat.serve.llm.sampling import SamplingParams

MAX_SEQUENCES = 4096
"""Most completions of one request (prompts times ``n``), and most prompts that may wait."""


@dataclasses.dataclass
class QueuedRequest:
    """Waiting prompts and tokens of a request, or of all requests of a client."""

    client: str
    requests: int = 0
    prompts: int = 0
    tokens: int = 0


class Admission:
    """Admission control: a request enters the queue with all of its prompts or not at all.

    Args:
        max_requests: requests of one client that may wait.
        max_tokens: tokens of their prompts.
    """

    def __init__(self, max_requests: int, max_tokens: int):
        self._most = QueuedRequest("", max_requests, MAX_SEQUENCES, max_tokens)
        self._clients: dict[str, QueuedRequest] = {}
        self._lock = threading.Lock()

    def enter(self, client: str, sizes: Sequence[int], *, limited: bool = True) -> QueuedRequest:
        """Admit a request, or raise.

        Args:
            client: whose.
            sizes: tokens of each of its prompts.
            limited: keep to the bounds.

        Raises:
            RequestError: it would not fit into an empty queue.
            QueueFull: it does not fit beside what waits now.
        """
        request = QueuedRequest(client, 1, len(sizes), sum(sizes))
        if limited:
            self.check(request)
        with self._lock:
            held = self._clients.get(client) or QueuedRequest(client)
            if limited:
                self._check_beside(held, request)
            self._clients[client] = held
            held.requests += 1
            held.prompts += request.prompts
            held.tokens += request.tokens
        return request

    def check_room(self, client: str, sizes: Sequence[int]) -> None:
        """Refuse what :meth:`enter` would refuse now; arguments and errors as there."""
        request = QueuedRequest(client, 1, len(sizes), sum(sizes))
        self.check(request)
        with self._lock:
            self._check_beside(self._clients.get(client) or QueuedRequest(client), request)

    def _check_beside(self, held: QueuedRequest, request: QueuedRequest) -> None:
        for name in ("requests", "prompts", "tokens"):
            waiting, most = getattr(held, name), getattr(self._most, name)
            if waiting + getattr(request, name) > most:
                raise QueueFull.of(waiting, most, name)

    def check(self, request: QueuedRequest) -> None:
        """Refuse a request that can never fit.

        Raises:
            RequestError: more prompts or tokens than an empty queue holds.
        """
        limits = {"prompts": MAX_TEXTS, "prompt tokens": self._most.tokens}
        for (name, most), found in zip(limits.items(), (request.prompts, request.tokens)):
            if found > most:
                raise RequestError(
                    "prompt",
                    found=f"{found} {name} in one request",
                    expected=f"at most {most}",
                    fix="split the request",
                    param="prompt",
                )

    def leave(self, request: QueuedRequest, tokens: int) -> None:
        """Count one of the request's prompts out of the queue, as it runs or is given up."""
        with self._lock:
            held = self._clients[request.client]
            for each in (request, held):
                each.prompts -= 1
                each.tokens -= tokens
            if request.prompts == 0:
                held.requests -= 1
            if held.requests == 0:
                del self._clients[request.client]


def most_tokens(
    prompt: Sequence[int], params: SamplingParams, max_length: int, vocab_size: int
) -> int:
    """The most tokens that a prompt may have generated after it.

    Args:
        prompt: token ids.
        params: how to generate.
        max_length: most tokens of prompt and output together.
        vocab_size: number of ids.

    Raises:
        RequestError: the prompt is empty, or an id is unknown.
        ContextTooLong: prompt and output do not fit.
    """
    if not prompt:
        raise RequestError("prompt", found="no tokens", expected="at least one", param="prompt")
    room = max_length - len(prompt)
    if room < (params.max_tokens or 1):
        wanted = f" and max_tokens {params.max_tokens}" if params.max_tokens else ""
        raise ContextTooLong(
            "context",
            found=f"{len(prompt)} prompt tokens{wanted}",
            expected=f"at most {max_length} tokens together, output included",
            fix="shorten the prompt" + (" or lower max_tokens" if wanted else ""),
            param="prompt" if room < 1 else "max_tokens",
        )
    biased = [token for token, _ in params.logit_bias]
    named = {
        "prompt": prompt,
        "stop_token_ids": params.stop_token_ids,
        "allowed_token_ids": params.allowed_token_ids,
        "logit_bias": biased,
    }
    for name, ids in named.items():
        fit = not ids or (min(ids) >= 0 and max(ids) < vocab_size)
        unknown = None if fit else next(i for i in ids if not 0 <= i < vocab_size)
        if unknown is not None:
            expected = f"ids from 0 to {vocab_size - 1}"
            raise RequestError(name, found=unknown, expected=expected, param=name)
    return params.max_tokens or room
