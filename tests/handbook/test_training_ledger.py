"""The ledger's rows: each one choice of one recipe, foretold within a tenth, and what is known beforehand is so."""

import pytest

from llmlab.handbook.training_ledger import FIRST, TextRows, counted, loss_of, predicted, setup
from llmlab.handbook.training_rows import BY_NAME, LEDGER
from llmlab.training.memory import Load, StepBytes

WIDE = {"layers": 2, "dim": 128, "context": 16}  # more weights than activations


@pytest.mark.parametrize("row", LEDGER, ids=lambda row: row.name)
def test_bytes_are_foretold_within_a_tenth(row: object) -> None:
    made = setup(row, {"layers": 3, "dim": 32, "context": 24})  # type: ignore[arg-type]
    assert predicted(made).peak == pytest.approx(counted(made), rel=0.1)


def test_clipping_saves_nothing() -> None:
    plain, free = (setup(BY_NAME[name], WIDE) for name in ("adamw", "not clipped"))
    assert counted(free) == pytest.approx(counted(plain), rel=0.01)
    assert predicted(free) == predicted(plain)


def test_savers_save_where_their_cause_is_the_peak() -> None:
    def few(name: str) -> StepBytes:
        return predicted(setup(BY_NAME[name], {"layers": 2}))

    first = few("adamw")
    assert few("checkpointing, full").peak < few("checkpointing, selective").peak < first.peak
    assert few("accumulation of 4").activations == pytest.approx(first.activations / 4, rel=0.01)
    assert few("in backward").peak == first.peak  # activations are: no gradient is alive at their peak


def test_savers_of_weights_gradients_and_moments() -> None:
    names = (
        "adamw",
        "bf16 moments",
        "adamw8bit",
        "adafactor",
        "sgd",
        "lion",
        "in backward",
        "shared layers",
        "untied head",
    )
    adapters = ("all weights", "lora", "lora, int8 base", "lora, int4 base", "ia3", "prompt")
    wide = {name: predicted(setup(BY_NAME[name], WIDE)) for name in (*names, *adapters)}
    assert wide["in backward"].peak < wide["adamw"].peak
    assert wide["in backward"].gradients < wide["adamw"].gradients / 2
    states = [wide[name].optimizer for name in ("adamw", "bf16 moments", "adamw8bit", "adafactor", "sgd")]
    assert states == sorted(states, reverse=True)
    assert wide["lion"].optimizer == pytest.approx(wide["bf16 moments"].optimizer, rel=0.01)
    assert wide["shared layers"].weights < wide["adamw"].weights < wide["untied head"].weights
    assert wide["lora"].optimizer < wide["all weights"].optimizer / 4
    assert all(wide[name].optimizer < wide["lora"].optimizer for name in ("ia3", "prompt"))
    held = [wide[name].weights for name in ("lora", "lora, int8 base", "lora, int4 base")]
    assert held == sorted(held, reverse=True)
    assert held[1] < held[0] / 2


def test_what_only_moves_memory_changes_no_loss() -> None:
    losses = {name: loss_of(BY_NAME[name], 0, 2) for name in ("not clipped", "in backward")}
    assert losses["in backward"] == losses["not clipped"]
    plain = loss_of(BY_NAME["adamw"], 0, 2)
    for name in ("checkpointing, full", "checkpointing, selective"):
        assert loss_of(BY_NAME[name], 0, 2) == plain
    assert loss_of(BY_NAME["accumulation of 4"], 0, 2) == pytest.approx(plain, rel=1e-5)
    assert loss_of(BY_NAME["lora"], 0, 2) != loss_of(BY_NAME["all weights"], 0, 2)


def test_rows_are_the_same_however_a_step_is_cut() -> None:
    (whole,) = TextRows(FIRST, Load(4, 8, 32), 3).next(None)
    cut = TextRows(FIRST, Load(1, 8, 8, 4), 3).next(None)
    assert [part.ids_BT.tolist() for part in cut] == [[row] for row in whole.ids_BT.tolist()]
    assert whole.ids_BT[:, 1:].equal(whole.targets_BT[:, :-1])
