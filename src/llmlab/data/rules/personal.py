"""Personal data: left as it is, masked, or handed to a part of your own (`my.module:MyPart`, an `Edit`)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from llmlab.data.rules.rule import Edit
from llmlab.data.rules.view import strings
from llmlab.recipe import KINDS, Section

EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.+-])[A-Za-z0-9_.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}(?![A-Za-z0-9-])"
)
IP = re.compile(
    r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\.?\d)"
    r"|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}(?![\w:])"
)
# With a country's code; as North America writes it; a mobile number of mainland China. Other digits are left alone: a
# year, a price and an order number look like the rest of the world's telephones.
PHONE = re.compile(
    r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}(?!\w)"
    r"|(?<![\w(])(?:\(\d{3}\) ?|\d{3}[-.])\d{3}[-.]\d{4}(?!\w)"
    r"|(?<!\d)1[3-9]\d{9}(?!\d)"
)
MASKS = ((EMAIL, "<email>"), (IP, "<ip>"), (PHONE, "<phone>"))


class Unmasked(Section):
    """Personal data stays."""

    kind: Literal["none"] = "none"


class Mask(Edit):
    """E-mail addresses, telephone numbers and IP addresses become <email>, <phone> and <ip>."""

    kind: Literal["mask"] = "mask"

    def edit(self, texts: Any) -> Any:
        return strings([masked(text) for text in texts.to_pylist()])


def masked(text: str) -> str:
    for pattern, name in MASKS:
        text = pattern.sub(name, text)
    return text


Personal = Annotated[Unmasked | Mask, *KINDS]
