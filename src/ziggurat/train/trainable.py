"""Interface that the training loop needs of a model."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.nn.precision import Precision


@runtime_checkable
class Trainable(Protocol):
    """Interface of a model as the training loop sees it: shapes and shardings of its trained
    parameters."""

    @property
    def abstract(self) -> Params:
        """Shapes and types of the parameters."""
        ...

    @property
    def axes(self) -> Params:
        """Logical axis names of the parameters, tuples as leaves."""
        ...

    @property
    def precision(self) -> Precision: ...

    def shardings(self, layout: Layout) -> Params: ...

    def init(self, key: Any) -> Params:
        """Fresh parameters."""
        ...

    @property
    def parameter_count(self) -> int: ...

    @property
    def matmul_parameter_count(self) -> int:
        """Number of parameters in the matrices that every token is multiplied by; a step's FLOPs
        follow from it."""
        ...

    @property
    def attention_channels(self) -> float:
        """Query channels of all heads of all layers."""
        ...

    @property
    def recurrent_flops_per_token(self) -> int:
        """FLOPs of a forward pass per token in recurrent layers, beside their weight matrices."""
        ...

    @property
    def has_experts(self) -> bool: ...

    @property
    def index_limits(self) -> Mapping[str, int]:
        """For the arrays of a batch that are looked up in tables (``tokens``, ``positions``, ...,
        also where another word comes before, as in ``chosen_tokens``), the first value that is too
        large. XLA would read NaN there, or another row."""
        ...
