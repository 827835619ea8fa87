"""What the training loop asks of a model."""

from typing import Any, Protocol, runtime_checkable

from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.nn.precision import Precision


@runtime_checkable
class Trainable(Protocol):
    """A model as the loop sees it: shapes and places of what is trained."""

    @property
    def abstract(self) -> Params:
        """Shapes and types of the parameters."""
        ...

    @property
    def axes(self) -> Params:
        """Their logical axis names, tuples as leaves."""
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
        """Parameters that multiply every token, by which FLOPs are counted."""
        ...

    @property
    def attention_channels(self) -> float:
        """Query channels of all heads of all layers."""
        ...

    @property
    def has_experts(self) -> bool: ...
