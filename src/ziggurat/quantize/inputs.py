"""Statistics of a matrix's inputs, and the interface of a model that gives them layer by layer."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ziggurat.kernels.linear import QuantizedWeight
from ziggurat.quantize.recipe import Rule
from ziggurat.quantize.rounding import Rounding


@runtime_checkable
class InputMoments(Protocol):
    """Statistics of a matrix's inputs, see :class:`ziggurat.models.layer_by_layer.Moments`."""

    @property
    def gram(self) -> Any:
        """Sum of ``x x^T``."""
        ...

    @property
    def magnitude(self) -> Any:
        """Sum of ``|x|``."""
        ...

    @property
    def largest(self) -> Any:
        """Maximum of ``|x|``."""
        ...

    @property
    def tokens(self) -> np.ndarray: ...

    def __getitem__(self, expert: int) -> "InputMoments":
        """Statistics of one expert's inputs."""
        ...

    def divided(self, factors: Any) -> "InputMoments":
        """Statistics of the inputs divided by ``factors``."""
        ...


@runtime_checkable
class FoldPlace(Protocol):
    """A place where factors of inputs fold away, see :class:`ziggurat.models.folds.Fold`."""

    @property
    def into_norm(self) -> bool:
        """Whether a norm comes before the matrices, and not a projection."""
        ...

    @property
    def consumers(self) -> Sequence[str]:
        """Names of the matrices that read the same inputs."""
        ...

    @property
    def producers(self) -> Sequence[str]:
        """Names of the parameters that are divided."""
        ...

    def applied(
        self, weights: Mapping[str, Any], factors: Any
    ) -> tuple[dict[str, Any], np.ndarray]:
        """The producers' new values, and the factors that they stand for after rounding to
        bfloat16."""
        ...


@runtime_checkable
class Layers(Protocol):
    """A model that runs layer by layer, see
    :class:`ziggurat.models.layer_by_layer.LayerByLayer`."""

    def moments(self, layer: int, names: Collection[str]) -> Mapping[str, InputMoments]: ...

    def folds(self, layer: int) -> Sequence[FoldPlace]:
        """Places of a layer where factors fold away; none changes the layer's outputs."""
        ...

    def advance(self, layer: int, weights: Mapping[str, Any]) -> None: ...


@runtime_checkable
class RoundMatrix(Protocol):
    """Interface of a method's function that rounds one matrix for its inputs."""

    def __call__(
        self, weight: Any, inputs: InputMoments, rule: Rule, rounding: Rounding
    ) -> QuantizedWeight:
        """Round a matrix ``[d, f]`` of float32. NaN in the scales says that the inputs' moments are
        not positive definite in float32."""
        ...


@runtime_checkable
class FindFactors(Protocol):
    """Interface of a method's function that finds the factors of some inputs."""

    def __call__(
        self,
        weights: Sequence[Any],
        inputs: InputMoments,
        rules: Sequence[Rule],
        rounding: Rounding,
    ) -> Any:
        """Factors ``[d]``, all positive, for matrices ``[d, f]`` that read the same inputs."""
        ...
