"""The life of a reward process: load the scorer, judge completions, end with the parent."""

import os
import pickle
import queue
import threading
from multiprocessing import connection

from ziggurat.core.errors import ZigguratError
from ziggurat.post.rl.scoring import Score, checked

JudgedRow = tuple[str, str, dict]
"""Arguments of a reward function: prompt, completion, and the problem's row."""
Answer = tuple[float | None, str]
"""Result of a reward function: the reward, or ``None`` and the reason that there is none."""


def serve(link: int) -> None:
    """Run a reward process: judge one completion at a time.

    Args:
        link: file descriptor of the socket to the parent. The first message from there is the
            pickled scorer; the first answer is ``None``, or the error that it cannot be loaded.
    """
    os.dup2(2, 1)  # what a reward function prints is no answer
    parent = connection.Connection(link)
    orders: queue.SimpleQueue[JudgedRow] = queue.SimpleQueue()
    try:
        score = pickle.loads(parent.recv_bytes()).load()
    except ZigguratError as error:
        parent.send(error)
        return
    threading.Thread(target=_read_orders, args=(parent, orders), daemon=True).start()
    parent.send(None)
    while True:
        parent.send(_judged(score, orders.get()))


def _judged(score: Score, asked: JudgedRow) -> Answer:
    """The reward, or why there is none; nothing that the function raises ends the process."""
    try:
        return checked(score(*asked)), ""
    except (Exception, SystemExit) as error:
        return None, " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _read_orders(parent: connection.Connection, orders: queue.SimpleQueue) -> None:
    """Pass orders on, and end the process with the parent, even while a function hangs."""
    while True:
        try:
            orders.put(parent.recv())
        except (EOFError, OSError):
            os._exit(0)
