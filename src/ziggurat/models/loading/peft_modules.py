"""Where the adapters of a model stand in published modules, for PEFT's files.

PEFT adapts modules, and a published module may hold several kernels of ours: GPT-2 keeps query, key
and value in one matrix ``c_attn``. ``k`` adapters of rank r side by side are one adapter of rank
``k r`` on that module,

``A = [A_q; A_k; A_v]``,  ``B = diag(B_q, B_k, B_v)``,

and the other way round each kernel takes the whole ``A`` and its own rows of ``B``.
"""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from ziggurat.core.pytrees import named_leaves
from ziggurat.kernels.linear import is_quantized
from ziggurat.models.adapters import Lora, adapted_names
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.family import family_of
from ziggurat.models.language_model import LanguageModel
from ziggurat.models.quantized import summed_axes

WEIGHT = ".weight"


@dataclasses.dataclass(frozen=True)
class AdaptedModule:
    """The published modules that one kernel, or several together, are stored in."""

    kernels: tuple[tuple[WeightName, tuple[int, ...]], ...]
    """Names and shapes here."""

    @property
    def fused(self) -> bool:
        """Whether these kernels are parts of one matrix there."""
        return self.kernels[0][0].part is not None

    @property
    def of_experts(self) -> bool:
        """Whether there is one for each expert."""
        return any(name.experts > 1 for name, _ in self.kernels)

    @property
    def last(self) -> str:
        """Last component of the modules' names."""
        return self.theirs(1)[0].rpartition(".")[2]

    @property
    def stored_transposed(self) -> bool:
        """Whether the matrix is ``[in, out]`` there, PEFT's ``fan_in_fan_out``."""
        return not self.kernels[0][0].transpose

    def theirs(self, layers: int) -> list[str]:
        """Modules there, by layer, then expert."""
        return [n.removesuffix(WEIGHT) for n in self.kernels[0][0].all_theirs(layers)]

    def join(
        self, leaves: Mapping[str, Float[np.ndarray, "..."]], index: int
    ) -> tuple[Float[np.ndarray, "r d"], Float[np.ndarray, "f r"]]:
        """PEFT's two matrices of one module.

        Args:
            leaves: ``a [..., d, r]`` and ``b [..., r, f]`` by name; kernels without them have none.
            index: which of :meth:`theirs`.
        """
        rows = sum(shape[-1] for _, shape in self.kernels)
        down, up = [], []
        for name, _ in self.kernels:
            if f"{name.ours}.a" not in leaves:
                continue
            a, b = (leaves[f"{name.ours}.{part}"] for part in "ab")
            tensor = b.reshape(-1, *b.shape[-2:])[index].T
            if name.restore is not None:
                tensor = name.restore(tensor)
            if name.part is not None:
                whole = np.zeros((rows, tensor.shape[1]), tensor.dtype)
                whole[name.part.of(rows)] = tensor
                tensor = whole
            down.append(a.reshape(-1, *a.shape[-2:])[index].T)
            up.append(tensor)
        return np.concatenate(down), np.concatenate(up, axis=1)

    def part(
        self, name: WeightName, up: Float[np.ndarray, "f_module r"]
    ) -> Float[np.ndarray, "r f"]:
        """A kernel's ``b`` of a module's second matrix."""
        if name.part is not None:
            up = up[name.part.of(len(up))]
        return (up if name.reorder is None else name.reorder(up)).T


def adaptable_modules(model: LanguageModel) -> list[AdaptedModule]:
    """The modules whose kernels PEFT can adapt."""
    weights = named_leaves(model.abstract, is_leaf=is_quantized)
    kernels = {name for name, axis in summed_axes(model).items() if axis == -2}
    found: dict[tuple, list[tuple[WeightName, tuple[int, ...]]]] = collections.defaultdict(list)
    for name in family_of(model.config).hf_names(model.config):
        shape = weights[name.ours].shape
        matrix = len(shape) == name.stacked_axes + 2  # experts that are one tensor are no module
        if name.ours in kernels and matrix and _is_module(name):
            found[name.theirs, name.layers].append((name, shape))
    return [AdaptedModule(tuple(parts)) for parts in found.values()]


def without_module(lora: Lora, model: LanguageModel) -> list[str]:
    """Kernels that get an adapter and for which PEFT has no form: experts that are one tensor, and
    dense layers beside experts whose modules have the same last name, which PEFT 0.21 leaves out
    with transformers 5 (it takes such names for the experts' alone)."""
    modules = adaptable_modules(model)
    taken = {module.last for module in modules if module.of_experts}
    clear = [module for module in modules if module.of_experts or module.last not in taken]
    known = {name.ours for module in clear for name, _ in module.kernels}
    return [name for name in adapted_names(lora, model) if name not in known]


def _is_module(name: WeightName) -> bool:
    """Whether the weight is a module's, and the kernel a part of what that module gives."""
    if not name.theirs.endswith(WEIGHT) or (name.reorder is not None and name.restore is None):
        return False
    return name.part is None or name.part.axis % 2 == (0 if name.transpose else 1)
