"""All modes work from a checkpoint alone, and what cannot work says so."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from corpus.brier import prompts_of
from corpus.chunks import open_built, reported
from corpus.tokenizer import Tokenizer
from kit import device
from kit.errors import UserError
from tests.conftest import sentences
from tokcom import evaluate, inference
from tokcom.flow import Flow
from tokcom.inference import decode, denoise_reconstruct, encode, generate, load_checkpoint, reconstruct


@pytest.fixture(scope="module")
def loaded(trained):
    vae, denoiser, args, config = load_checkpoint(trained / "best_diffusion.pt")
    return vae, denoiser, args, Tokenizer.from_json(config["tokenizer"])


@pytest.fixture
def run(call, trained, capsys):
    def go(*options, checkpoint="best_diffusion.pt"):
        capsys.readouterr()
        assert call(inference, "--checkpoint", trained / checkpoint, "--device", "cpu", *options) == 0
        return capsys.readouterr().out

    return go


@pytest.fixture
def refuse(refused, trained):
    def go(*options, checkpoint="best_diffusion.pt"):
        return refused(inference, "--checkpoint", trained / checkpoint, "--device", "cpu", *options)

    return go


def ids_of(tokenizer, text):
    return torch.from_numpy(tokenizer.encode(text).astype("int64"))[None]


def test_the_python_interface_goes_round(loaded):
    vae, denoiser, args, tokenizer = loaded
    ids = ids_of(tokenizer, sentences(5, 6))[:, :62]
    latents = encode(vae, ids)
    assert latents.shape == (1, 16, args.latent_dim)
    assert torch.equal(decode(vae, latents)[:, :62], reconstruct(vae, ids))
    assert (reconstruct(vae, ids) == ids).float().mean() > 0.9
    assert torch.equal(denoise_reconstruct(vae, denoiser, ids, 1.0), reconstruct(vae, ids))


def test_more_noise_leaves_less(loaded):
    vae, denoiser, _, tokenizer = loaded
    ids = torch.cat([ids_of(tokenizer, sentences(seed, 9))[:, :64] for seed in range(30, 42)])
    found = [
        (denoise_reconstruct(vae, denoiser, ids, level, num_steps=8, generator=torch.Generator().manual_seed(0)) == ids)
        .float().mean().item()
        for level in (0.0, 0.3, 0.6, 0.95)
    ]  # fmt: skip
    assert found == sorted(found) and found[-1] > 0.9 and found[0] < 0.3


def test_generation_repeats_itself_for_a_seed_and_keeps_prompts(loaded):
    vae, denoiser, args, tokenizer = loaded
    prompt = ids_of(tokenizer, sentences(3, 3))[0, :12]
    runs = [
        generate(vae, denoiser, 8, args.chunk_size, args.hidden_size, num_steps=4, batch_size=2, prompt_ids=prompt,
                 generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]  # fmt: skip
    with pytest.raises(UserError, match="need whole chunks of 4"):
        generate(vae, denoiser, 8, num_steps=4, prompt_ids=prompt[:5])
    assert runs[0].shape == (2, 44) and torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert (runs[0][:, :12] == prompt).all()


def test_a_book_of_any_length_is_encoded_and_read_back(run, tmp_path):
    text = sentences(77, 900)
    (tmp_path / "book.txt").write_text(text)
    said = run("--mode", "encode", "--input_file", tmp_path / "book.txt", "--output_file", tmp_path / "latents.pt")
    assert "vectors of 24" in said
    run("--mode", "decode", "--latents", tmp_path / "latents.pt", "--output_file", tmp_path / "back.txt")
    back = (tmp_path / "back.txt").read_text()
    reconstructed = run("--mode", "reconstruct", "--input_file", tmp_path / "book.txt").split("\n", 1)
    assert reconstructed[1] == back + "\n" and float(reconstructed[0].split("%")[0]) > 90
    again = run("--mode", "reconstruct", "--input_file", tmp_path / "book.txt", checkpoint="best_vae.pt")
    assert again.split("\n", 1)[1] == back + "\n"


def test_with_its_mistakes_kept_a_text_comes_back_to_the_letter(run, tmp_path):
    text = "\ufeffLine ends of another kind,\r\nand 中文 it never saw: \U0001f600\n" + sentences(78, 90)
    book, latents, back = (tmp_path / name for name in ("book.txt", "latents.pt", "back.txt"))
    book.write_bytes(text.encode())
    said = run("--mode", "encode", "--exact", "--input_file", book, "--output_file", latents)
    assert "kept beside them" in said and 0 < int(said.split("all but ")[1].split(";")[0]) < 600
    run("--mode", "decode", "--latents", latents, "--output_file", back)
    assert back.read_bytes() == book.read_bytes()


def test_vectors_of_few_bits_are_smaller_and_still_read(run, refuse, tmp_path):
    text = sentences(79, 400)
    sizes, right = [], []
    for bits in ((), ("--bits", 8), ("--bits", 3)):
        said = run("--mode", "encode", "--input_text", text, *bits, "--output_file", tmp_path / "latents.pt")
        sizes.append((tmp_path / "latents.pt").stat().st_size)
        right.append(int(said.split("all but ")[1].split()[0]))
    assert sizes[0] > 3 * sizes[1] > 6 * sizes[2] and right[1] <= right[0] + 5
    run("--mode", "encode", "--input_text", text, "--bits", 3, "--exact", "--output_file", tmp_path / "latents.pt")
    assert run("--mode", "decode", "--latents", tmp_path / "latents.pt") == text + "\n"
    assert "--bits 9: need 1 to 8" in refuse("--mode", "encode", "--input_text", text, "--bits", 9)


def test_latents_are_read_by_no_vae_but_their_own(run, refuse, tmp_path):
    """The VAE of stage one is the same network, and its vectors are not normalized."""
    run("--mode", "encode", "--input_text", sentences(5, 5), "--output_file", tmp_path / "latents.pt")
    said = refuse("--mode", "decode", "--latents", tmp_path / "latents.pt", checkpoint="best_vae.pt")
    assert "another model" in said


def test_the_writing_modes_write(run):
    assert "tokens recovered" in run(
        "--mode", "denoise_reconstruct", "--input_text", sentences(1, 40), "--num_steps", 3
    )
    assert len(run("--mode", "generate", "--num_chunks", 8, "--num_steps", 3, "--batch_size", 2).strip()) > 8
    prompt = "The color of a token is home."
    said = run(
        "--mode", "conditional", "--prompt", prompt, "--num_generate_chunks", 4, "--num_steps", 3, "--guidance", 2
    )
    assert prompt[-12:] in said
    assert run("--mode", "conditional", "--prompt", prompt, "--num_steps", 2)  # as much as the window has room for


def test_what_cannot_work_says_so(refuse, trained, tmp_path):
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    state = {"latents": torch.zeros(2, 24), "num_tokens": 8, "vae": "0" * 16}
    torch.save(state, tmp_path / "foreign.pt")
    torch.save({"latents": torch.zeros(2, 24)}, tmp_path / "bare.pt")
    assert "holds a VAE only" in refuse("--mode", "generate", checkpoint="best_vae.pt")
    assert "needs --input_text or --input_file" in refuse("--mode", "reconstruct")
    assert "input text is empty" in refuse("--mode", "encode", "--input_text", "")
    assert "not UTF-8" in refuse("--mode", "encode", "--input_file", tmp_path / "latin.txt")
    assert "cannot read" in refuse("--mode", "encode", "--input_file", tmp_path / "absent.txt")
    assert "at least 4, one whole chunk" in refuse("--mode", "conditional", "--prompt", "")
    assert "window holds 1 to 16" in refuse("--mode", "generate", "--num_chunks", 17)
    assert "need at least 1" in refuse("--mode", "generate", "--num_chunks", 0)
    assert "half a surrogate pair" in refuse("--mode", "encode", "--input_text", "caf\udce9")
    assert "window holds 1 to 16" in refuse(
        "--mode", "conditional", "--prompt", sentences(1, 2), "--num_generate_chunks", 16
    )
    assert "need 0 (pure noise)" in refuse(
        "--mode", "denoise_reconstruct", "--input_text", "a b c d", "--noise_level", 2
    )
    assert "needs --latents" in refuse("--mode", "decode")
    assert "another model" in refuse("--mode", "decode", "--latents", tmp_path / "foreign.pt")
    assert "lacks num_tokens" in refuse("--mode", "decode", "--latents", tmp_path / "bare.pt")


def test_a_report_has_every_number_and_figure(call, refused, data, trained, tmp_path):
    options = ("--data_path", data, "--output_dir", tmp_path, "--device", "cpu", "--precision", "fp32")
    (tmp_path / "book.txt").write_text(sentences(9, 200))
    options = (*options, "--num_samples", 12, "--num_prompts", 16, "--num_steps", 4, "--book", tmp_path / "book.txt")
    assert call(evaluate, "--checkpoint", trained / "best_diffusion.pt", *options) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    test = open_built(data / "test")
    assert report["read_from"] == str(data / "test")
    assert report["num_tokens"] == test.lengths[reported(test, 12)].sum()
    assert 0 < report["parameters"]["vae"] < report["parameters"]["denoiser"]
    assert report["reconstruction"] > 0.9 and report["reconstruction_at_noise"].keys() >= {"0.1", "0.3"}
    accuracies = list(report["reconstruction_at_noise"].values())
    assert accuracies[0] >= accuracies[-1]
    assert [row["noise_level"] for row in report["denoise"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert all(0 <= row["no_context"] <= 1 for row in report["denoise"])
    half = report["denoise"][4]
    assert half["model"] > half["decoder_only"] + 0.05
    assert half["decoder_bigrams"] > half["decoder_only"] and half["model_trigrams"] > half["model"] - 0.02
    vectors = report["compression"]["vectors"]
    assert [row["bits_per_token"] for row in vectors] == [6 * row["bits"] for row in vectors]
    assert vectors[0]["recovered"] < vectors[-1]["recovered"] == pytest.approx(report["reconstruction"], abs=0.01)
    assert (
        0 < report["compression"]["trigrams"] < report["compression"]["bigrams"] < 8
        and report["compression"]["zstd"] > 0
    )
    assert [row["nfe"] for row in report["by_nfe"]] == [1, 2, 4, 8, 16, 32, 64]
    assert 0 < report["active_dims"] <= report["latent_dim"] == 24
    assert report["nll"] == pytest.approx(sum(report["bound"][part] for part in ("reading", "flow", "prior")))
    assert report["round_trip"]["tokens"] > 1000 and 0.9 < report["round_trip"]["recovered"] <= 1
    for name in ("reconstruction", "nfe", "schedule", "map"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 5
    assert "holds a VAE only" in refused(evaluate, "--checkpoint", trained / "best_vae.pt", *options)


def test_sequences_and_prompts_are_those_of_the_autoregressive_baseline(data, loaded):
    vae, denoiser, model_args, _ = loaded
    test = open_built(data / "test")
    args = Namespace(num_samples=20, num_prompts=30, seed=0, max_length=model_args.max_length)
    held_out = evaluate.HeldOut(Flow(vae, denoiser, 1.0), denoiser.times, test, args, device.start("cpu", 0, "fp32"))
    assert (
        torch.equal(held_out.prompts.cpu(), prompts_of(test, args.num_prompts, args.max_length))
        and len(held_out.prompts) == 30
    )
    tokens = torch.cat([batch["tokens"][batch["mask"]] for batch in held_out.batches])
    assert torch.equal(tokens, torch.cat([test[i] for i in reported(test, 20)]))
