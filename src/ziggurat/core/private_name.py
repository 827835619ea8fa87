"""A name of another library that is not public, what Ziggurat needs it for, and what to do when a
new version of that library no longer has it.

Private names stand in one file for each library (:mod:`ziggurat.core.jax_private`,
:mod:`ziggurat.checkpoint.orbax_private`), whose versions ``pyproject.toml`` bounds. Each is looked
up when it is used, so that a version without it stops only what needs it, with a sentence.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
from typing import Any

from ziggurat.core.errors import EnvironmentError


@dataclasses.dataclass(frozen=True)
class PrivateName:
    """One private name and the facts that whoever replaces it needs.

    Attributes:
        module: where it is imported from.
        name: the attribute of that module; dots lead further inside.
        purpose: what stops working without it.
        remedy: the nearest public name, why it does not do yet, and what to try.
        distribution: the installed package that has it.
        file: the file of Ziggurat to mend.
        members: attributes of it that are used.
        arguments: its parameters that are given by name.

    >>> PrivateName("math", "tau", "circles", "use 2 * math.pi", "python", "circle.py").load()
    6.283185307179586
    """

    module: str
    name: str
    purpose: str
    remedy: str
    distribution: str
    file: str
    members: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()

    def load(self) -> Any:
        """The named object.

        Raises:
            EnvironmentError: the installed version does not have it; the text says what to do.
        """
        try:
            return functools.reduce(
                getattr, self.name.split("."), importlib.import_module(self.module)
            )
        except (ImportError, AttributeError) as error:
            raise self._gone(f"{self.module}.{self.name}") from error

    def check(self) -> None:
        """Verify the name, its members and its parameters; for the test that runs at an upgrade.

        Raises:
            EnvironmentError: one of them is gone; the text says what to do.
        """
        found = self.load()
        for member in self.members:
            if not hasattr(found, member):
                raise self._gone(f"{self.module}.{self.name}.{member}")
        if self.arguments:
            parameters = inspect.signature(found).parameters
            for argument in self.arguments:
                if argument not in parameters:
                    raise self._gone(f"{self.module}.{self.name}({argument}=)")

    def _gone(self, what: str) -> EnvironmentError:
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        return EnvironmentError(
            f"{what}, needed for {self.purpose}",
            found=f"{self.distribution} {version}, which does not have it",
            expected="a version within the bounds of pyproject.toml",
            fix=f"install one, or mend {self.file}: {self.remedy}",
        )
