"""The protocol's messages, built at import from ``open_inference.proto``.

The text is the one source: clients of any language compile it, and here a reader of the few forms
it uses turns it into descriptors. They live in a pool of their own, so that a client library with
the same message names can be imported beside.

>>> request = MESSAGES["ModelInferRequest"](model_name="m", raw_input_contents=[b"ab"])
>>> MESSAGES["ModelInferRequest"].FromString(request.SerializeToString()).model_name
'm'
>>> METHODS["ModelInfer"]
Method(name='ModelInfer', request='ModelInferRequest', response='ModelInferResponse', streams=False)
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO = Path(__file__).with_name("open_inference.proto")
PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"
_FIELD = descriptor_pb2.FieldDescriptorProto
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|[{}()<>;=,]")
_COMMENT = re.compile(r"//[^\n]*")
_HEADER = re.compile(r'syntax = "proto3";\s+package inference;')


class Method(NamedTuple):
    """A gRPC method and its message types."""

    name: str
    request: str
    response: str
    streams: bool
    """Whether both sides stream."""


class _Reader:
    """Reads messages, enums and services of proto3; knows no imports, options or reserved names."""

    def __init__(self, text: str):
        plain = _COMMENT.sub("", text)
        self._tokens: Iterator[str] = iter(_TOKEN.findall(_HEADER.sub("", plain)))
        self.file = descriptor_pb2.FileDescriptorProto(
            name=PROTO.name, package=PACKAGE, syntax="proto3"
        )

    def read(self) -> descriptor_pb2.FileDescriptorProto:
        """The whole file."""
        for word in self._tokens:
            if word == "message":
                self._message(self.file.message_type.add())
            elif word == "enum":
                self._enum(self.file.enum_type.add())
            else:
                self._service(self.file.service.add())
        for message in self.file.message_type:
            _resolve(message, f".{PACKAGE}.{message.name}", self.file)
        return self.file

    def _message(self, message: Any) -> None:
        message.name = self._next()
        self._skip("{")
        while (word := self._next()) != "}":
            if word == "message":
                self._message(message.nested_type.add())
            elif word == "enum":
                self._enum(message.enum_type.add())
            elif word == "oneof":
                message.oneof_decl.add(name=self._next())
                self._skip("{")
                while (inner := self._next()) != "}":
                    self._field(message, inner, oneof=len(message.oneof_decl) - 1)
            elif word == "map":
                self._map(message)
            elif word == "repeated":
                self._field(message, self._next(), repeated=True)
            else:
                self._field(message, word)

    def _field(
        self, message: Any, kind: str, repeated: bool = False, oneof: int | None = None
    ) -> None:
        label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
        field = message.field.add(name=self._next(), label=label, type_name=kind)
        self._skip("=")
        field.number = int(self._next())
        self._skip(";")
        if oneof is not None:
            field.oneof_index = oneof

    def _map(self, message: Any) -> None:
        self._skip("<")
        key = self._next()
        self._skip(",")
        value = self._next()
        self._skip(">")
        self._field(message, "", repeated=True)
        field = message.field[-1]
        entry = message.nested_type.add(name=f"{field.name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        for number, (name, kind) in enumerate((("key", key), ("value", value)), 1):
            entry.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL, type_name=kind)
        field.type_name = entry.name

    def _enum(self, enum: Any) -> None:
        enum.name = self._next()
        self._skip("{")
        while (word := self._next()) != "}":
            self._skip("=")
            enum.value.add(name=word, number=int(self._next()))
            self._skip(";")

    def _service(self, service: Any) -> None:
        service.name = self._next()
        self._skip("{")
        while self._next() != "}":
            method = service.method.add(name=self._next())
            for side in ("client", "server"):
                self._skip("(")
                kind = self._next()
                if kind == "stream":
                    setattr(method, f"{side}_streaming", True)
                    kind = self._next()
                setattr(method, "input_type" if side == "client" else "output_type", kind)
                self._skip(")")
                self._skip("returns" if side == "client" else ";")
            method.input_type = f".{PACKAGE}.{method.input_type}"
            method.output_type = f".{PACKAGE}.{method.output_type}"

    def _next(self) -> str:
        return next(self._tokens)

    def _skip(self, token: str) -> None:
        found = self._next()
        if found != token:
            raise ValueError(f"{PROTO.name}: found {found!r}, expected {token!r}")


def _resolve(message: Any, scope: str, file: Any) -> None:
    """Turn the type words of fields into types and full names."""
    for nested in message.nested_type:
        _resolve(nested, f"{scope}.{nested.name}", file)
    own_enums = {entry.name for entry in message.enum_type}
    own_messages = {entry.name for entry in message.nested_type}
    all_enums = {entry.name for entry in file.enum_type}
    for field in message.field:
        kind = field.type_name
        plain = f"TYPE_{kind.upper()}"
        if kind.islower() and plain in dict(_FIELD.Type.items()):
            field.type = _FIELD.Type.Value(plain)
            field.ClearField("type_name")
            continue
        is_enum = kind in own_enums or (kind not in own_messages and kind in all_enums)
        field.type = _FIELD.TYPE_ENUM if is_enum else _FIELD.TYPE_MESSAGE
        local = kind in own_enums or kind in own_messages
        field.type_name = f"{scope}.{kind}" if local else f".{PACKAGE}.{kind}"


FILE = _Reader(PROTO.read_text(encoding="utf-8")).read()
"""The whole protocol as a file descriptor."""

POOL = descriptor_pool.DescriptorPool()
"""Ours alone; :mod:`grpc_reflection` is given it."""
POOL.AddSerializedFile(FILE.SerializeToString())

MESSAGES: dict[str, Any] = {
    message.name: message_factory.GetMessageClass(
        POOL.FindMessageTypeByName(f"{PACKAGE}.{message.name}")
    )
    for message in FILE.message_type
}
"""Message classes by name."""

METHODS = {
    method.name: Method(
        method.name,
        method.input_type.rpartition(".")[2],
        method.output_type.rpartition(".")[2],
        method.client_streaming,
    )
    for method in FILE.service[0].method
}
"""Remote calls by name."""
