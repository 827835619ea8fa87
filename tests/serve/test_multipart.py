"""Bodies of multipart/form-data: what clients send, and what breaks the form."""

import httpx2 as httpx
import pytest

from ziggurat.serve.errors import RequestError
from ziggurat.serve.multipart import MOST_PARTS, Part, read_form

FORM = "multipart/form-data; boundary=x"


def body(*parts, end=b"--x--\r\n"):
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + end


def field(name, content, more=b""):
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + content


def test_what_a_client_sends_comes_out():
    content = bytes(range(256)) * 3 + b"\r\n--not the boundary\r\n\r\n"
    request = httpx.Request(
        "POST",
        "http://a/b",
        data={"model": "größe", "t[]": ["a", "b"]},
        files={"file": ("a b.wav", content, "audio/wav")},
    )
    found = read_form(request.read(), request.headers["content-type"])
    assert found == [
        Part("model", None, "größe".encode()),
        Part("t[]", None, b"a"),
        Part("t[]", None, b"b"),
        Part("file", "a b.wav", content),
    ]
    assert found[0].text == "größe"


def test_preamble_empty_content_and_spaces_after_a_boundary_are_allowed():
    sent = b"ignored\r\n--x  \r\n" + field(b"a", b"") + b"\r\n--x--\r\nignored"
    assert read_form(sent, 'multipart/form-data; boundary="x"') == [Part("a", None, b"")]


@pytest.mark.parametrize(
    ("sent", "kind", "part"),
    [
        (body(field(b"a", b"1")), "application/json", "content-type"),
        (body(field(b"a", b"1")), "", "content-type: found none"),
        (body(field(b"a", b"1")), "multipart/form-data", "content-type"),
        (body(field(b"a", b"1")), "multipart/mixed; boundary=x", "content-type"),
        (body(field(b"a", b"1")), "multipart/form-data; boundary=y", "no last boundary"),
        (body(field(b"a", b"1"), end=b""), FORM, "no last boundary"),
        (b"", FORM, "no last boundary"),
        (body(b"no headers"), FORM, "without headers"),
        (body(b"x" * 10_000 + b"\r\n\r\n"), FORM, "too long"),
        (body(b"A: b\r\n\r\n1"), FORM, "without Content-Disposition"),
        (body(b"Content-Disposition: form-data\r\n\r\n1"), FORM, "without Content-Disposition"),
        (body(field(b"a", b"MQ==", b"\r\nContent-Transfer-Encoding: base64")), FORM, "forbids"),
        (body(*[field(b"a", b"1")] * (MOST_PARTS + 1)), FORM, "parts"),
    ],
)
def test_what_breaks_the_form_is_refused(sent, kind, part):
    with pytest.raises(RequestError, match=part):
        read_form(sent, kind)


def test_a_field_that_is_no_text_is_refused_when_it_is_read():
    (found,) = read_form(body(field(b"a", b"\xff")), FORM)
    with pytest.raises(RequestError, match=r"a: found .* expected UTF-8"):
        _ = found.text
