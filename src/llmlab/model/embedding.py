"""What some families put around the table of the vocabulary."""

from __future__ import annotations

from pydantic import Field

from llmlab.recipe import Section


class Embedding(Section):
    """table -> scale -> + position, + segment -> norm -> dropout -> projection to the stack's width."""

    dim: int | None = Field(
        None, gt=0, description="width of the table, projected to the stack's (ALBERT, arXiv 1909.11942); null: equal"
    )
    scale: float = Field(1.0, gt=0, description="what vectors are multiplied by (Gemma: sqrt(dim))")
    norm: bool = Field(False, description="whether they are normalised before the first block (BERT, BLOOM)")
    segments: int = Field(0, ge=0, description="texts of a pair that are told apart by a learnt vector (BERT: 2)")
