"""What the documents print that this repository grew from runs here, paths, machines and sizes aside.

Each document's commands are read from the document itself, so that none is forgotten; options that make them small are added
behind what is printed.
"""

import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import build_pretrain_data
import inference
import model as root_model
import train
from corpus.tokenizer import load_tokenizer
from image_context import generate_train_data, plot_results, run_exp, train_lora
from image_context.config import load_config
from tests.conftest import SHARED, TINY, sentences
from tests.image_context.test_scripts import write_config
from tests.runs import ROOT
from tests.tokcom.conftest import SMALL
from tests.vit_cifar10.conftest import drawn, write_npz
from tokcom import inference as tokcom_inference
from tokcom import train as tokcom_train
from vit_cifar10 import train as vit_train
from vit_cifar10 import visualize_attention
from vit_cifar10.model import VisionTransformer

DOCUMENTS = SHARED.parent / "seeds"
CPU = ("--device", "cpu")
FP32 = (*CPU, "--precision", "fp32")


def blocks(number: int, language: str) -> list[str]:
    """The code blocks of a document."""
    if not DOCUMENTS.is_dir():
        pytest.skip(f"no documents at {DOCUMENTS}: set TOKENCOLOR_TEST_DATA")
    (path,) = DOCUMENTS.glob(f"{number}_*.md")
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)


def commands(number: int) -> list[list[str]]:
    """Its commands, as lists of arguments; comments, installation and changes of folder left out."""
    found = []
    for block in blocks(number, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] not in ("cd", "pip") and "..." not in words:
                found.append(words)
            elif "..." in words:
                found.append([word for word in words if word != "..."])
    return found


def replaced(words: list[str], **values) -> list[str]:
    """Options of a command with other values: what is a path or a size on the machine of the document."""
    words = list(words)
    for name, value in values.items():
        words[words.index(f"--{name}") + 1] = str(value)
    return words


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ----------------------------------------------------------------------------------------------------------------------
# The root


def test_the_64x64_document(call, here, text_folder):
    build, fit, infer = commands(0)
    assert build == ["python", "build_pretrain_data.py"]
    small = ("--input", text_folder, "--vocab_size", 300, "--min_tokens", 16, "--max_tokens", 64, "--val_fraction", 0.1)
    assert call(build_pretrain_data, *build[2:], *small) == 0
    assert {path.name for path in (here / "data").iterdir()} >= {"train", "val", "stats.json"}
    assert fit[:2] == ["python", "train.py"]
    tiny = (*TINY[:2], *TINY[4:6], *FP32, "--max_steps", 1, "--val_samples", 2, "--ngram", 0)
    assert call(train, *fit[2:], *tiny) == 0
    assert infer[:2] == ["python", "inference.py"]
    checkpoint = here / "checkpoints/jit/best_model.pth"
    assert (
        call(
            inference,
            *replaced(infer[2:], checkpoint=checkpoint),
            *FP32,
            "--num_inference_steps",
            1,
            "--num_tokens",
            40,
        )
        == 0
    )
    assert (here / "outputs" / "generate_000.txt").exists()


def test_its_function_that_cuts_text(data):
    (printed,) = [block for block in blocks(0, "python") if "split_text_into_random_token_chunks" in block]
    text, tokenizer = sentences(3, 3000), load_tokenizer(data / "tokenizer.json")
    scope = {**vars(build_pretrain_data), "text": text, "tokenizer": tokenizer}
    exec(compile(printed, "document", "exec"), scope)
    assert len(scope["chunks"]) > 2 and text.startswith("".join(scope["chunks"]))
    assert all(256 <= len(tokenizer.encode(chunk)) <= 4096 for chunk in scope["chunks"])


def test_the_from_scratch_document(call, here, data):
    start, resume, *settings = commands(1)
    assert start == ["./train.sh"]  # run by test_train_script.py
    script = (ROOT / "train.sh").read_text()
    assert [words[0].split("=")[0] for words in settings] == ["LR", "EPOCHS", "WARMUP_EPOCHS"]
    assert all(f"${{{words[0].split('=')[0]}:-" in script for words in settings)
    assert resume[:2] == ["python", "train.py"]
    run = ("--output_dir", "run/jit_v1", *TINY, "--ngram", 0, "--save_interval", 10, "--val_samples", 2)
    assert call(train, "--data_path", data, *run, "--max_steps", 1) == 0
    given = replaced(resume[2:], resume="run/jit_v1/last.pth", data_path=data / "train")
    assert call(train, *given, *run, "--max_steps", 2) == 0
    for name in ("build_jit_model", "load_pretrained_jit"):
        (printed,) = [block for block in blocks(1, "python") if f"def {name}" in block]
        asked = re.findall(r"^    (\w+): .*? = (.*),$", printed, flags=re.MULTILINE)
        parameters = inspect.signature(getattr(root_model, name)).parameters
        assert [(key, repr(parameters[key].default)) for key, _ in asked] == asked
    assert isinstance(root_model.load_pretrained_jit("JiT-Ti/4", img_size=8), root_model.JiT)


# ----------------------------------------------------------------------------------------------------------------------
# TokCom


@pytest.fixture(scope="module")
def tokcom_run(data, tmp_path_factory):
    """`python train.py`, small."""
    folder = tmp_path_factory.mktemp("reference_tokcom")
    first, *_ = commands(2)
    assert first == ["python", "train.py"]
    options = [
        *first[2:],
        "--data_path",
        data,
        *SMALL,
        "--vae_epochs",
        1,
        "--diffusion_epochs",
        1,
        "--output_dir",
        folder / "checkpoints",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train", *map(str, options)])
        tokcom_train.main()
    return folder


def test_the_tokcom_document(call, tokcom_run, monkeypatch):
    monkeypatch.chdir(tokcom_run)
    modes = commands(2)[1:]
    assert [words[words.index("--mode") + 1] for words in modes] == [
        "generate", "reconstruct", "denoise_reconstruct", "encode", "conditional"
    ]  # fmt: skip
    for words in modes:
        assert words[:2] == ["python", "inference.py"]
        small = replaced(words, num_generate_chunks=4) if "--num_generate_chunks" in words else words
        assert call(tokcom_inference, *small[2:], *CPU) == 0
    assert (tokcom_run / "latents.pt").exists()


def test_its_settings_and_its_checkpoint(tokcom_run):
    (printed,) = [block for block in blocks(2, "python") if "class TrainConfig" in block]
    asked = set(re.findall(r"^    (\w+): ", printed, flags=re.MULTILINE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train"])
        known = set(vars(tokcom_train.parse_args())) | {"wandb_project"}  # an alias of --wandb
    assert asked <= known
    (printed,) = [block for block in blocks(2, "python") if block.startswith("{")]
    saved = torch.load(tokcom_run / "checkpoints/best_diffusion.pt", weights_only=True)
    keys = re.findall(r"^    '(\w+)':", printed, flags=re.MULTILINE)
    assert set(keys) <= saved.keys()
    for part in ("model_args", "config"):
        inner = printed[printed.index(f"'{part}'") :].split("},")[0]
        assert set(re.findall(r"^        '(\w+)':", inner, flags=re.MULTILINE)) <= saved[part].keys()


def test_its_python_interface(tokcom_run, monkeypatch, capsys):
    """Printed for `cuda` and modules beside each other; here a CPU, and the package's modules under those names."""
    monkeypatch.chdir(tokcom_run)
    (printed,) = [block for block in blocks(2, "python") if "from model import" in block]
    import tokcom.model

    monkeypatch.setitem(sys.modules, "model", tokcom.model)
    monkeypatch.setitem(sys.modules, "inference", tokcom_inference)
    printed = (
        printed.replace('"cuda"', '"cpu"')
        .replace("num_chunks=256", "num_chunks=8")
        .replace("num_steps=50", "num_steps=2")
    )
    exec(compile(printed, "document", "exec"), {})
    assert capsys.readouterr().out.strip()


# ----------------------------------------------------------------------------------------------------------------------
# Image context


def test_the_image_document(call, here):
    printed = commands(3)
    programs = {
        "generate_train_data": generate_train_data,
        "train_lora": train_lora,
        "run_exp": run_exp,
        "plot_results": plot_results,
    }
    config = write_config(here / "config.yaml", output_dir="outputs")
    shown = set()
    for words in printed:
        name = Path(words[1]).stem
        options = replaced(words[2:], config=config) if "--config" in words else words[2:]
        if name == "generate_train_data":
            options = [*replaced(options, num_samples=16)]
        if "--resume" in options:
            options = replaced(options, resume="outputs/last.pth")
        if "--lora_path" in options:
            options = replaced(options, lora_path="outputs/final")
        if name == "run_exp" and "--lora_path" not in options:
            options += ["--output_dir", "untrained"]
        if name in ("train_lora", "run_exp"):
            options += FP32
        assert call(programs[name], *options) == 0, words
        shown.add(name)
    assert shown == set(programs) and (here / "outputs/plots/cost_accuracy.png").exists()


def test_its_yaml(here):
    (printed,) = blocks(3, "yaml")
    (here / "train.yaml").write_text(printed, encoding="utf-8")
    config = load_config(here / "train.yaml")
    assert (
        config.lora.r == 16 and config.generation.num_samples_per_codec == 500 and config.training.learning_rate == 2e-4
    )
    assert {name: codec.codec for name, codec in config.data.codecs.items()} == {
        "render": "render", "codebook": "codebook", "codebook_external": "qr"
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# ViT


def test_the_vit_document(call, here, capsys):
    """Training, the snippet that loads what it wrote, and the attention maps."""
    write_npz(here, "train", *drawn(60, 1))
    write_npz(here, "test", *drawn(30, 2))
    printed = commands(4)
    assert [words[1] for words in printed] == ["train_cifar10.py", "train_cifar10.py", "visualize_attention.py"]
    small = ("--data_path", here, "--epochs", 1, "--batch_size", 10, "--val_images", 10, "--depth", 2, *FP32)
    assert call(vit_train, "--preset", "reference", *small, "--output_dir", "checkpoints") == 0
    (snippet,) = [block for block in blocks(4, "python") if "from vit_model import" in block]
    scope = {}
    import vit_cifar10.model

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vit_model", vit_cifar10.model)
        capsys.readouterr()
        exec(compile(snippet.replace("depth=6", "depth=2"), "document", "exec"), scope)
    shown = capsys.readouterr().out
    assert isinstance(scope["model"], VisionTransformer) and re.search(r"\d+\.\d\d%", shown)
    assert scope["checkpoint"]["epoch"] == 1 and 0 <= scope["checkpoint"]["test_acc"] <= 100
    from PIL import Image

    Image.fromarray(drawn(1, 3)[0][0]).save(here / "image.png")
    assert call(visualize_attention, "image.png", "--checkpoint", "checkpoints/best_model.pth", *CPU) == 0


def test_its_settings_are_those_of_the_preset(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train", "--preset", "seed"])  # the name it had at first
    args = vars(vit_train.parse_args())
    printed = "\n".join(blocks(4, "python"))
    for name, ours in (("img_size", "img_size"), ("patch_size", "patch_size"), ("embed_dim", "embed_dim"), ("depth", "depth"),
                       ("num_heads", "num_heads"), ("batch_size", "batch_size"), ("num_epochs", "epochs"), ("learning_rate", "lr"),
                       ("weight_decay", "weight_decay")):  # fmt: skip
        value = re.search(rf"^{name} = (\S+)", printed, flags=re.MULTILINE)[1]
        assert args[ours] == pytest.approx(float(value)), name
    assert args["optimizer"] == "adamw" and args["schedule"] == "cosine"


def test_its_settings_exist_as_flags():
    """`drop_rate`, rotations, colors and early stopping, under the names they have here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train"])
        known = vit_train.parse_args()
    assert {"dropout", "trivial_augment", "patience", "weights"} <= vars(known).keys()
