"""The four programs, one after the other, as a user runs them; and what they refuse."""

import json
import random
import shutil

import pytest
import torch
import yaml
from PIL import Image

from image_context import gallery, generate_train_data, plot_results, run_exp, train_lora
from image_context.config import load_config
from image_context.dataset import read_records
from image_context.model import add_compressors, load_vlm, row_step
from image_context.plot_results import summarize, summarize_needles
from image_context.run_exp import read_results
from image_context.tasks import split_of
from kit.errors import UserError
from kit.muon import build_optimizers
from tests.runs import load, rows, same_tensors

CODEBOOK = {
    "codec": "codebook",
    "options": {"payload": "tokens", "tokenizer": "model", "module": 7, "symbols_per_block": 3, "frame": "none", "columns": 1},
}  # fmt: skip


def write_config(path, **changes):
    values = {
        "model": {"name": "tiny", "vocab_size": 300, "row_step": 3},
        "data": {
            "tasks": ["random"], "lengths": [6], "samples": 3,
            "codecs": {"text": {"codec": "text"}, "codebook": CODEBOOK, "qr": {"codec": "qr", "options": {"version": 5, "module": 2}}},
            "augmentations": ["clean", "light"],
        },
        "generation": {"num_samples_per_codec": 16},
        "training": {"max_steps": 6, "batch_size": 4, "gradient_accumulation_steps": 2, "optimizer": "muon", "learning_rate": 1e-3, "save_steps": 2, "log_interval": 1},
    }  # fmt: skip
    for name, value in changes.items():
        values[name] = {**values.get(name, {}), **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


COSTS = {"total_tokens": 9, "ratio_context": 1.0, "ratio_total": 0.5, "visual_tokens": 0, "context_tokens": 4}
ON_CPU = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with data, a trained vlm and results."""
    import sys

    folder = tmp_path_factory.mktemp("image_context")
    config = write_config(folder / "config.yaml")
    common = ["--config", str(config), "--output_dir", str(folder)]
    previous = sys.argv
    try:
        for module, arguments in (
            (generate_train_data, common), (train_lora, [*common, *ON_CPU]),
            (run_exp, [*common, *ON_CPU, "--lora_path", str(folder / "final")]),
            (plot_results, ["--input", str(folder / "results/results.jsonl"), "--output", str(folder / "plots")]),
        ):  # fmt: skip
            sys.argv = ["program", *arguments]
            module.main()
    finally:
        sys.argv = previous
    return folder


def test_training_pairs_are_of_the_training_split(run):
    records = read_records(run / "train_data" / "records.jsonl")
    assert len(records) == 3 * 16 and all(split_of(r.sample.document) == "train" for r in records)
    assert {r.codec for r in records} == {"text", "codebook", "qr"}
    assert all(Image.open(run / "train_data" / path).width % 28 == 0 for r in records for path in r.images)


def test_every_question_is_answered_once_and_its_inputs_kept(run):
    rows = [json.loads(line) for line in (run / "results" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["id"] for row in rows}) == 3 * 2 * 3
    for row in rows:
        assert row["error"] is None and row["config_hash"] == load_config(run / "config.yaml").hash
        assert 0 <= row["metrics"]["token_accuracy"] <= 1 and split_of(row["answer"]) == "eval"
        assert (run / "results" / row["prompt"]).read_text().endswith("<|im_start|>assistant\n")
        assert all((run / "results" / path).is_file() for path in row["images"])
        assert row["costs"]["context_tokens"] == 6 and (row["costs"]["visual_tokens"] > 0) == bool(row["images"])
    assert len({row["answer"] for row in rows}) == 3


def test_plots_show_a_point_for_every_codec(run):
    summary = json.loads((run / "plots" / "summary.json").read_text())
    assert {p["codec"] for p in summary["points"]} == {"text", "codebook", "qr"}
    for name in ("cost_accuracy", "ratio_accuracy", "robustness", "bits"):
        assert Image.open(run / "plots" / f"{name}.png").width > 400


def test_a_trained_model_is_trained_on_from_its_weights(run, call, refused, tmp_path):
    def config(folder, **model):
        data = {"tasks": ["random"], "lengths": [6], "codecs": {"text": {"codec": "text"}}}
        training = {"max_steps": 1, "learning_rate": 1e-9, "weight_decay": 0.0}
        written = write_config(tmp_path / f"{folder}.yaml", model=model, data=data, training=training)
        return "--config", written, "--output_dir", tmp_path / folder

    common = config("next", start=str(run / "final"), row_step=2)
    assert call(generate_train_data, *common) == 0 and call(train_lora, *common, *ON_CPU) == 0
    before, after = (load_vlm(str(folder / "final")) for folder in (run, tmp_path / "next"))
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert (row_step(before.model), row_step(after.model)) == (3, 2)
    assert not (tmp_path / "next" / "final" / "adapter_config.json").exists()
    pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)
    other = config("other", start=str(run / "final"), rope_theta=10000)
    assert "has rope_theta 100, and the config says 10000" in refused(generate_train_data, *other)
    assert "cannot load" in refused(generate_train_data, *config("gone", start=str(tmp_path / "nowhere")))
    assert "only tiny and small" in refused(
        generate_train_data, *config("hub", name="some/model", start="x", row_step=1)
    )


def test_an_experiment_goes_on_where_it_stopped(run, call, tmp_path):
    target = tmp_path / "results"
    target.mkdir()
    lines = (run / "results" / "results.jsonl").read_text().splitlines(keepends=True)
    (target / "results.jsonl").write_text("".join(lines[:7]) + lines[7][:40])  # killed while it wrote
    common = ("--config", run / "config.yaml", "--output_dir", tmp_path, *ON_CPU)
    assert call(run_exp, *common, "--lora_path", run / "final") == 0
    rows = [json.loads(line) for line in (target / "results.jsonl").read_text().splitlines()]
    whole = {json.loads(line)["id"]: json.loads(line) for line in lines}
    assert len(rows) == len(whole)
    assert all(row["prediction"] == whole[row["id"]]["prediction"] for row in rows)


def test_results_hold_whatever_a_vlm_says(tmp_path):
    path = tmp_path / "results.jsonl"
    said = [{"id": str(i), "prediction": f"a{c}b"} for i, c in enumerate("\x85\u2028\u2029\x0c\r")]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in said]
    path.write_bytes(b"\n".join(lines) + b"\n" + '{"id": "é'.encode()[:-1])  # killed inside a character
    assert read_results(path) == said
    path.write_bytes(b"\n".join([lines[0], b"{}", lines[1]]))
    with pytest.raises(UserError, match="line 2 is no result"):
        read_results(path)


def test_a_failure_is_recorded_and_counts_as_wrong(run, call, tmp_path):
    render = {"render": {"codec": "render", "options": {"page_width": 100, "margin": 20}}}
    config = write_config(tmp_path / "c.yaml", data={
        "tasks": ["needle"], "languages": ["zh"], "lengths": [400], "samples": 2, "codecs": render, "augmentations": ["clean"],
    })  # fmt: skip
    common = ("--config", config, "--output_dir", tmp_path, *ON_CPU)
    assert call(run_exp, *common, "--lora_path", run / "final") == 0
    rows = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all("no glyph for" in row["error"] for row in rows)
    assert call(plot_results, "--input", tmp_path / "results/results.jsonl", "--output", tmp_path / "plots") == 0
    summary = json.loads((tmp_path / "plots" / "summary.json").read_text())
    point = summary["points"][0]
    assert point["mean"] == 0 and point["failures"] == 2
    needles = summary["needles"]
    assert sum(needle["questions"] for needle in needles) == 2 and not any(needle["mean"] for needle in needles)
    assert Image.open(tmp_path / "plots" / "needle.png").width > 400
    assert summarize(
        [{**rows[0], "error": None, "metrics": {"needle_hit": 1, "char_error_rate": 0.5}, "costs": COSTS}, rows[1]]
    )[0]["metrics"] == {"needle_hit": 0.5, "char_error_rate": 0.75}


def test_needles_are_counted_by_place():
    asked = {"codec": "text", "augmentation": "clean", "task": "needle", "length": 128, "language": "en", "error": None}
    hits = [(0.0, 1), (0.19, 0), (0.2, 1), (1.0, 1)]
    records = [{**asked, "position": place, "metrics": {"needle_hit": hit}} for place, hit in hits]
    records += [
        {**records[0], "augmentation": "heavy"},
        {**records[0], "error": "no glyph"},
        {**records[0], "task": "json"},
    ]
    found = {n["place"]: (n["mean"], n["questions"]) for n in summarize_needles(records)}
    assert found == {0: (pytest.approx(1 / 3), 3), 1: (1, 1), 4: (1, 1)}


def test_needles_without_a_clean_image_have_no_map(call, tmp_path):
    record = {
        "id": "1", "codec": "text", "augmentation": "heavy", "task": "needle", "length": 128, "language": "en", "error": None,
        "position": 0.5, "metrics": {"needle_hit": 1.0}, "costs": COSTS, "token_bits": 9.0, "vlm": "tiny", "config_hash": "0",
    }  # fmt: skip
    (tmp_path / "results.jsonl").write_text(json.dumps(record))
    assert call(plot_results, "--input", tmp_path / "results.jsonl", "--output", tmp_path) == 0
    assert (tmp_path / "report.html").is_file() and not (tmp_path / "needle.png").exists()


def test_a_step_is_of_documents_of_one_length():
    """Each at most once in an epoch, others in the next; documents that are all of one length stay in the order of the draw."""
    lengths = random.Random(0).choices((16, 32), k=101)
    epochs = [train_lora.in_steps(lengths, 4, 0, epoch) for epoch in (0, 1)]
    for order in epochs:
        assert len(order) == len(set(order)) == 100
        mixed = sum(len({lengths[i] for i in order[at : at + 4]}) > 1 for at in range(0, 100, 4))
        first = [lengths[i] for i in order[::4]]
        assert mixed <= 1 and first not in (sorted(first), sorted(first, reverse=True))
    assert epochs[0] != epochs[1]
    assert sorted(train_lora.in_steps([16] * 12, 4, 0, 0)) == list(range(12))


def test_resumed_training_repeats_the_uninterrupted_one(run, call, tmp_path):
    (tmp_path / "train_data").symlink_to(run / "train_data")
    (tmp_path / "tokenizer.json").write_bytes((run / "tokenizer.json").read_bytes())
    common = ("--config", run / "config.yaml", "--output_dir", tmp_path, *ON_CPU)

    def stop_after(steps):
        count = 0

        def note(self):
            nonlocal count
            count += 1
            return count >= steps

        return property(note, lambda self, value: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lora.Interrupt, "received", stop_after(3), raising=False)
        assert call(train_lora, *common) == 0
    assert not (tmp_path / "final").exists()
    assert call(train_lora, *common, "--resume", "auto") == 0
    assert rows(run, "loss") == rows(tmp_path, "loss")
    assert same_tensors(load(run / "last.pth")["weights"], load(tmp_path / "last.pth")["weights"])


def test_muon_takes_the_matrices_between_embeddings_and_output_and_adamw_all_others(run):
    vlm = load_vlm(run / "final")
    add_compressors(vlm.model, [3])
    names = {id(p): name for name, p in vlm.model.named_parameters()}
    muon, adamw = (
        {names[id(p)] for group in o.param_groups for p in group["params"]}
        for o in build_optimizers("muon", vlm.model, 1e-3, 0.01, (0.9, 0.98))
    )
    assert muon | adamw == set(names.values()) and not muon & adamw
    assert all(
        part in " ".join(muon) for part in ("visual.blocks.0.attn.qkv", "layers.0.self_attn.q_proj", "compressors.3")
    )
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in muon)
    (alone,) = build_optimizers("adamw", vlm.model, 1e-3, 0.01, (0.9, 0.98))
    assert isinstance(alone, torch.optim.AdamW) and len(alone.param_groups[0]["params"]) == len(names)


def test_the_gallery_reads_back_what_it_shows(call, tmp_path, capsys):
    assert call(gallery, "--output_dir", tmp_path) == 0
    assert Image.open(tmp_path / "gallery.png").width > 800


def test_the_configs_that_come_along_are_valid():
    from pathlib import Path

    import image_context

    configs = Path(image_context.__file__).parent / "configs"
    loaded = {path.stem: load_config(path) for path in configs.glob("*.yaml")}
    assert set(loaded) == {"default", "exp_sweep", "smoke_test", "train"}
    plain = load_config(configs / "default.yaml")
    assert plain.hash == type(plain)().hash  # default.yaml tells the truth, all of it
    for section in (plain, *(value for _, value in plain if hasattr(value, "model_fields_set"))):
        assert section.model_fields_set == set(type(section).model_fields)


# ----------------------------------------------------------------------------------------------------------------------
# Mistakes


def test_configs_that_make_no_sense_are_refused(refused, tmp_path):
    def told(**changes):
        return refused(
            generate_train_data, "--config", write_config(tmp_path / "c.yaml", **changes), "--output_dir", tmp_path
        )

    assert "training.epochs: unknown key" in told(training={"epochs": 3})
    assert "only tiny and small can stretch" in told(model={"name": "Qwen/Qwen2-VL-2B-Instruct"})
    assert "data.tasks.0" in told(data={"tasks": ["sing"]})
    assert "data.tasks: List should have at least 1 item" in told(data={"tasks": []})
    assert "data.codecs.a/b" in told(data={"codecs": {"a/b": {"codec": "text"}}})
    assert "codec qr version 'abc'" in told(data={"codecs": {"a": {"codec": "qr", "options": {"version": "abc"}}}})
    assert "codec render fonts 5" in told(data={"codecs": {"a": {"codec": "render", "options": {"fonts": 5}}}})
    assert "has no option 'colour'" in told(data={"codecs": {"a": {"codec": "codebook", "options": {"colour": 3}}}})
    assert "data.codecs.a.codec" in told(data={"codecs": {"a": {"codec": "morse"}}})
    assert "no codec of this config is to be trained" in told(data={"codecs": {"a": {"codec": "text", "train": 0}}})
    (tmp_path / "bad.yaml").write_text("a: [1")
    assert "is no YAML" in refused(generate_train_data, "--config", tmp_path / "bad.yaml")
    assert "cannot read --config" in refused(generate_train_data, "--config", tmp_path / "none.yaml")
    config = write_config(tmp_path / "good.yaml")
    for count in (0, 2**31, 2**63 - 1):  # which once were listed in memory before the first was made
        assert "need 1 to 100,000,000" in refused(generate_train_data, "--config", config, "--num_samples", count)


def test_wrong_folders_and_readers_are_refused(run, refused, tmp_path):
    config = run / "config.yaml"
    before = (run / "results" / "results.jsonl").read_bytes()
    assert "write it with generate_train_data" in refused(
        train_lora, "--config", config, "--output_dir", tmp_path, *ON_CPU
    )
    common = ("--config", config, "--output_dir", run, *ON_CPU)
    assert "pass --resume auto" in refused(train_lora, *common)
    assert "there is no" in refused(train_lora, *common, "--resume", tmp_path / "no.pth")
    changed = write_config(tmp_path / "other.yaml", training={"max_steps": 7})
    assert "belongs to another config" in refused(
        train_lora, "--config", changed, "--output_dir", run, *ON_CPU, "--resume", "auto"
    )
    assert "results of another config or vlm" in refused(run_exp, *common)
    assert (run / "results" / "results.jsonl").read_bytes() == before
    assert "was trained on its data" in refused(generate_train_data, "--config", config, "--output_dir", run)
    harder = write_config(tmp_path / "harder.yaml", data={"lengths": [7]})
    shutil.copytree(run / "train_data", tmp_path / "copy" / "train_data")
    copied = ("--output_dir", tmp_path / "copy", *ON_CPU)
    assert "another data than the config's" in refused(train_lora, "--config", harder, *copied)
    fresh = ("--config", config, "--output_dir", tmp_path / "new", *ON_CPU)
    assert "no folder at --lora_path" in refused(run_exp, *fresh, "--lora_path", tmp_path / "nowhere")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct"}'
    )
    assert "is for Qwen/Qwen2-VL-7B-Instruct" in refused(run_exp, *fresh, "--lora_path", tmp_path / "adapter")
    for content in ("{", "[]", "{}"):
        (tmp_path / "adapter" / "adapter_config.json").write_text(content)
        assert "the adapter is damaged" in refused(run_exp, *fresh, "--lora_path", tmp_path / "adapter")
    assert "cannot read" in refused(plot_results, "--input", tmp_path / "no.jsonl", "--output", tmp_path)
