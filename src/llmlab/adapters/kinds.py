"""The closed union of what may be trained in place of all weights."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from llmlab.adapters.bottleneck import Bottleneck
from llmlab.adapters.chosen import BitFit, Freeze
from llmlab.adapters.dora import DoRA
from llmlab.adapters.ia3 import IA3
from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import AdapterPart
from llmlab.adapters.prefix import Prefix
from llmlab.adapters.prompt import Prompt, PTuning
from llmlab.recipe import KINDS


def _lora_where_no_kind(value: Any) -> Any:
    """`{rank: 8}` is LoRA's: recipes were written so before there were others."""
    return {"kind": "lora", **value} if isinstance(value, Mapping) and "kind" not in value else value


def _beside_the_base(section: AdapterPart) -> AdapterPart:
    if not section.apart:
        raise ValueError(f"{section.kind} trains the base itself, which other roles share (lora lies beside it)")
    return section


Adapter = Annotated[
    LoRA | DoRA | IA3 | Prefix | Prompt | PTuning | Bottleneck | BitFit | Freeze,
    *KINDS,
    BeforeValidator(_lora_where_no_kind),
]
# One that several may be on a base at once, a role each.
RoleAdapter = Annotated[Adapter, AfterValidator(_beside_the_base)]
