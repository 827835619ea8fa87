"""Model FLOPs and model FLOP utilisation (MFU), from plain numbers.

The count is the one of PaLM, appendix B (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311):
matrix multiplications only, a multiply-add is 2 FLOPs, the backward pass costs twice the forward
pass, and recomputation (remat) does not count. With N parameters that take part in matmuls,
l layers, h query heads of c channels and s keys per query::

    forward per token   = 2 N + 4 l h c s
    training per token  = 6 N + 12 l h c s

PaLM sets s = t, the sequence length, also for causal attention. Since a causal kernel skips the
upper triangle, some papers count s = (t + 1) / 2 instead; an MFU is comparable only with one of the
same convention. :func:`mean_keys` gives s for both, and for sliding windows.
"""

from ziggurat.core.errors import ConfigError


def mean_keys(sequence: int, *, window: int | None = None) -> float:
    """Mean number of keys a causal query attends to in a sequence of ``sequence`` tokens.

    Without a window the mean of 1 .. t, that is (t + 1) / 2; with one, min(position, window).

    >>> mean_keys(4), mean_keys(4, window=2)
    (2.5, 1.75)
    """
    _check("sequence", sequence, 1)
    if window is None or window >= sequence:
        return (sequence + 1) / 2
    _check("window", window, 1)
    return (window * (window + 1) / 2 + (sequence - window) * window) / sequence


def forward_flops_per_token(
    matmul_parameters: int, *, layers: int, heads: int, head_dim: float | int, keys: float | int
) -> float:
    """FLOPs of a forward pass per token, 2 N + 4 l h c s.

    Args:
        matmul_parameters: N, parameters used in a matmul for every token. The embedding
            table does not count (it is a lookup), the output head does, also when it is tied; of a
            mixture's experts count those a token is sent to.
        layers: l, attention layers.
        heads: h, query heads.
        head_dim: c, channels of one head.
        keys: s, keys per query: t (PaLM), or what :func:`mean_keys` says.

    >>> forward_flops_per_token(1000, layers=2, heads=4, head_dim=8, keys=16)
    6096.0
    """
    for name, value in (("matmul_parameters", matmul_parameters), ("layers", layers)):
        _check(name, value, 0)
    for name, value in (("heads", heads), ("head_dim", head_dim), ("keys", keys)):
        _check(name, value, 0)
    return 2.0 * matmul_parameters + 4.0 * layers * heads * head_dim * keys


def training_flops_per_token(
    matmul_parameters: int,
    *,
    layers: int,
    heads: int,
    head_dim: float | int,
    sequence: int,
    causal: bool = False,
    recurrent: int = 0,
) -> float:
    """FLOPs of forward and backward pass per token, 6 N + 12 l h c t (PaLM, appendix B).

    Args:
        matmul_parameters: N; see :func:`forward_flops_per_token`.
        layers: l, attention layers.
        heads: h, query heads.
        head_dim: c, channels of one head.
        sequence: t, tokens of a sequence.
        causal: count only the keys that a causal mask leaves, 6 l h c (t + 1) instead of
            12 l h c t. Off by default, so that the figure compares with published ones.
        recurrent: forward FLOPs per token of recurrent layers, whatever the length; three times
            that is added.

    >>> training_flops_per_token(1000, layers=2, heads=4, head_dim=8, sequence=16)
    18288.0
    >>> training_flops_per_token(1000, layers=2, heads=4, head_dim=8, sequence=16, causal=True)
    12528.0
    """
    keys = mean_keys(sequence) if causal else float(sequence)
    forward = forward_flops_per_token(
        matmul_parameters, layers=layers, heads=heads, head_dim=head_dim, keys=keys
    )
    return 3.0 * (forward + recurrent)


def mfu(
    tokens_per_s: float | int, flops_per_token: float | int, chips: int, peak: float | int | None
) -> float | None:
    """Model FLOP utilisation: the share of the chips' peak that the model's own FLOPs take.

    MFU = tokens_per_s * flops_per_token / (chips * peak), a fraction, not a percentage.

    Args:
        tokens_per_s: throughput of the whole job, tokens/s.
        flops_per_token: what :func:`training_flops_per_token` says.
        chips: chips (not JAX devices, see ``hardware.chip_count``).
        peak: FLOP/s of one chip in the format of the matrix operands, from ``hardware.peak``.

    Returns:
        The fraction, or None when the peak is unknown.

    >>> mfu(1000, 6e9, chips=2, peak=10e12)
    0.3
    >>> mfu(1000, 6e9, chips=8, peak=None) is None
    True
    """
    _check("chips", chips, 1)
    if peak is None:
        return None
    return tokens_per_s * flops_per_token / (chips * peak)


def _check(name: str, value: float | int, least: int) -> None:
    if not value >= least:
        raise ConfigError(f"FLOP count: {name}", found=value, expected=f"at least {least}")
