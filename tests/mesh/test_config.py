"""The mesh of a run file: what is refused, and how."""

import pytest

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.mesh import AXES, MeshConfig


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data = 0", ["data: found 0", ">= 1", "-1 for the rest"]),
        ("tensor = -2", ["tensor: found -2"]),
        ("data = -1", ["at most one axis of -1"]),
        ("fsdp = 1.5", ["fsdp: found 1.5", "integer"]),
        ("fdsp = 2", ["fdsp: unknown key", "did you mean fsdp?"]),
        ("[dcn]\ndata = 0", ["dcn", "data: found 0", "slices >= 1"]),
        ("[dcn]\ntensor = 2", ["dcn.tensor: unknown key"]),
        ("[rules]\nembedding = ['fsdp']", ["rules: found 'embedding'", "embed"]),
        ("[rules]\nembed = ['model']", ["rules.embed: found 'model'", "tensor"]),
        ("[rules]\nembed = 'fsdp'", ["rules.embed"]),
        ("[rules]\nembed = ['fsdp', 'fsdp']", ["rules.embed", "at most once"]),
    ],
)
def test_each_error_is_one_line(text, parts):
    with pytest.raises(ConfigError) as caught:
        config.parse(MeshConfig, text)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_a_whole_mesh_reads_and_survives_a_round_trip():
    text = """
    data = 2
    fsdp = -1
    tensor = 4
    [dcn]
    data = 2
    [rules]
    kv_heads = []
    batch = ["data", "fsdp"]
    """
    mesh = config.parse(MeshConfig, text).value
    assert (mesh.data, mesh.fsdp, mesh.tensor, mesh.dcn.data) == (2, -1, 4, 2)
    assert mesh.rules == {"kv_heads": (), "batch": ("data", "fsdp")}
    assert config.parse(MeshConfig, config.to_toml(mesh)).value == mesh


def test_every_mesh_axis_is_a_field():
    assert set(AXES) <= set(MeshConfig.__dataclass_fields__)
