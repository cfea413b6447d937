"""What a path opens to: a model, a stage folder, a whole run, or an adapter followed to its base and merged into it.

What weights alone cannot say (virtual tokens, bottlenecks) is kept on the model, whatever the role.

RUN/                the furthest policy that is finished: ppo, dpo, sft, pretrain, rope
RUN/sft/            model/ as it is, or adapter/ on what it names as its base
RUN/sft/adapter/    the same; a base is a path relative to the adapter's folder, or a known name
smollm2, x.gguf     whatever checkpoints.where opens

What adapters and stages need is imported where one is met: most models are neither, and a chat is to begin at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.where import ADAPTER, is_model_folder, open_model
from llmlab.errors import InputError

POLICIES = ("ppo", "dpo", "sft", "pretrain", "rope")


def open_policy(name_or_path: str | Path) -> Bundle:
    """The language model behind a name, a model, a stage folder, an adapter, or a run folder; float32, adapters merged,
    or kept where no weights can say them.

    `origin` is what was asked for, so that what is trained on top can name it as its base.
    Errors: InputError for a run without a finished policy, a reward model, a base that is missing or in a circle.
    """
    return replace(_open(name_or_path, ()), origin=origin_of(name_or_path))


def origin_of(name_or_path: str | Path) -> str:
    """The absolute path of what exists, else the name as it is."""
    path = Path(name_or_path).expanduser()
    return str(path.resolve()) if path.exists() else str(name_or_path)


def base_of(adapter: Path) -> str:
    """The origin of an adapter's base."""
    from llmlab.adapters.peft_config import read_config

    base = read_config(adapter).base
    inside = (adapter / base).resolve()
    if inside.exists():
        return str(inside)
    if base.startswith((".", "/")):
        raise InputError(str(adapter / ADAPTER), f"its base {base!r} is not there", "move adapter and base together")
    return origin_of(base)


def _open(name_or_path: str | Path, chain: tuple[str, ...]) -> Bundle:
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir() or is_model_folder(folder):
        return open_model(name_or_path)
    here = str(folder.resolve())
    if here in chain:
        raise InputError(here, "is its own base", " -> ".join([*chain[chain.index(here) :], here]))
    chain = (*chain, here)
    if (folder / ADAPTER).is_file():
        return _with_adapter(folder, chain)
    for part in ("model", "adapter"):
        if (folder / part).is_dir():
            return _open(folder / part, chain)
    if (folder / "recipe.yaml").is_file() or any((folder / stage).is_dir() for stage in POLICIES):
        return _open(last_policy(folder), chain)
    return open_model(folder)  # says what is looked for


def last_policy(run: Path) -> Path:
    """The folder of the furthest policy stage that is finished in a run."""
    from llmlab.stages import manifest

    for stage in POLICIES:
        if manifest(run / stage) is not None:
            return run / stage
    raise InputError(str(run), "no stage that makes a policy is finished yet", f"looked for {', '.join(POLICIES)}")


def _with_adapter(adapter: Path, chain: tuple[str, ...]) -> Bundle:
    from llmlab.adapters.base import rounded
    from llmlab.adapters.merging import settle
    from llmlab.adapters.peft_format import HEAD, load_peft, read_config

    if (adapter / HEAD).is_file():
        raise InputError(str(adapter), "is a reward model, not a language model", "open its base, or a policy")
    base = rounded(_open(base_of(adapter), chain), read_config(adapter).base_weights)
    load_peft(adapter, base.model, "merged")
    settle(base.model, "merged")
    base.model.requires_grad_()
    return base
