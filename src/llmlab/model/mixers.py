"""What may stand in a block's first half: attention of several kinds, or a recurrent net."""

from typing import Annotated

from llmlab.model.attention import GroupedQuery, LinearAttention, MultiHead, MultiQuery
from llmlab.model.recurrent import GRU, LSTM, RNN
from llmlab.recipe import KINDS

AttentionPart = Annotated[MultiHead | GroupedQuery | MultiQuery | LinearAttention | RNN | LSTM | GRU, *KINDS]
SoftmaxAttention = MultiHead | GroupedQuery | MultiQuery
