"""Images of conversations: parts, columns, and forms that are refused."""

import pytest

from ziggurat.data.sources.image_parts import checked, separated
from ziggurat.data.sources.records import Fault

SAID = {"role": "assistant", "content": "red"}


def found(parts, **record):
    """Parts of the first message, and the images, of a record."""
    messages = ({"role": "user", "content": parts}, SAID)
    made, images = separated(messages, record.__getitem__, record)
    return [part["type"] for part in made[0]["content"]], images


def test_bare_parts_take_the_column_in_order_and_own_ones_do_not():
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    parts = [{"type": "image"}, url, {"type": "text", "text": "?"}, {"type": "image"}]
    kinds, images = found(parts, images=["a.png", {"bytes": b"b", "path": None}])
    assert kinds == ["image", "image", "text", "image"]
    assert images == ("a.png", "data:image/png;base64,AA==", b"b")
    assert found([{"type": "image", "base64": "AA=="}])[1] == ("data:image;base64,AA==",)


def test_without_parts_images_stand_before_the_first_message_of_the_user():
    assert found("Which?", image="a.png") == (["image", "text"], ("a.png",))


@pytest.mark.parametrize(
    ("parts", "record", "message"),
    [
        ([{"type": "image"}], {"images": []}, "without an image"),
        ([{"type": "image"}], {"images": ["a", "b"]}, "2 images and 1 bare parts"),
        ("Which?", {"images": ["a"], "image": "b"}, "both 'image' and 'images'"),
        ("Which?", {"images": "a.png"}, "'images': str"),
        ([{"type": "image", "url": "https://example.org/a.png"}], {}, "an image under https:"),
        ([{"type": "image", "image": {"size": 3}}], {}, "an image with keys 'size'"),
    ],
)
def test_what_cannot_be_read_is_named(parts, record, message):
    with pytest.raises(Fault, match=message):
        found(parts, **record)


def test_numbers_are_no_images():
    with pytest.raises(Fault, match="an image of type int"):
        checked(3)
