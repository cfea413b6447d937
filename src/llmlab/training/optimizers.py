"""The optimizers a recipe may name: a closed union of settings, one rule a file.

State a weight: SGD none, Adafactor next to none, GaLore what its rank says, AdamW in 8 bits 2 bytes, Lion, Muon's
matrices and AdamW in bfloat16 4, AdamW 8.
"""

from typing import Annotated

from llmlab.recipe import KINDS
from llmlab.training.adafactor import Adafactor
from llmlab.training.adamw import AdamW
from llmlab.training.eight_bit import AdamW8bit
from llmlab.training.galore import GaLore
from llmlab.training.lion import Lion
from llmlab.training.muon import Muon
from llmlab.training.sgd import SGD

OptimizerKind = Annotated[AdamW | Muon | AdamW8bit | Adafactor | Lion | GaLore | SGD, *KINDS]
