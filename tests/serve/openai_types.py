"""Values of the types that OpenAI's own client package declares, for tests that sweep them."""

import typing

import typing_extensions


def examples(hint, name=""):
    """Values of a type of OpenAI's package: each literal, each member of a union, each optional key
    of a typed dictionary present in one of them."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Required, typing.NotRequired, typing.Annotated):
        yield from examples(args[0], name)
    elif origin is typing.Literal:
        yield from args
    elif origin is typing.Union or type(hint).__name__ == "UnionType":
        for arg in args:
            yield from examples(arg, name)
    elif typing_extensions.is_typeddict(hint):
        fields = typing.get_type_hints(hint, include_extras=True)
        shown = {key: list(examples(entry, key)) for key, entry in fields.items()}
        required = [k for k, entry in fields.items() if typing.get_origin(entry) is typing.Required]
        least = {key: shown[key][0] for key in required}
        yield least
        for key, values in shown.items():
            for value in values:
                yield least | {key: value}
    elif hint is type(None):
        yield None
    elif args and hint is not str:  # an iterable or a list
        yield from ([value] for value in examples(args[0], name))
    elif hint is str:
        yield '{"x": 1}' if name == "arguments" else "text"
    elif hint in (int, float):
        yield 1
    elif hint is bool:
        yield True
    else:
        yield {}
