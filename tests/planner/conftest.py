"""A machine of round figures, so that nothing here is measured."""

import pytest

from llmlab.planner.machine import Machine, Moved, Product


@pytest.fixture
def machine() -> Machine:
    products = [
        Product(name=f"{name}:{dtype}", sizes=(1, 64, 64, 64), flops=2.0 * 64**3, seconds=2.0 * 64**3 / 1e10)
        for name in ("mm", "bmm", "attention", "attention_backward")
        for dtype in ("fp32", "bf16")
    ]
    return Machine(
        key={"of": "a test"}, bare_bytes=400 << 20, import_bytes=350 << 20, primitive_bytes=600e3, text_bytes=60 << 20,
        kernels_most=80 << 20, called_seconds=1e-5, beside_seconds=5e-6, token_seconds=1e-4, stage_seconds=0.2,
        write_rate=1e8, write_seconds=0.01, row_seconds=1e-4, row_bytes=1500.0,
        text_rate=1e6, encode_rate=1e6, train_rate=1e6, baseline_rate=1e6, products=tuple(products),
        moved={"mul": (Moved(bytes=64, seconds=1e-6), Moved(bytes=1 << 24, seconds=4e-3))},
    )  # fmt: skip
