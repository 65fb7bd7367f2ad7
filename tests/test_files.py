"""What a model folder may say, and what is taken of it; the whole of it is in faults/hostile_models.py."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import save_backbone
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from audiocls.errors import InputOutputFailed, UserError
from audiocls.model.backbone import LoadedModel
from audiocls.model.encoder import SpeechClassifier
from audiocls.model.files import (
    check_tensors,
    known_fields,
    labels_in,
    model_folder,
    named_labels,
    read_json,
    save_model,
    weight_files,
)
from audiocls.model.loading import (
    load_for_inference,
    load_for_training,
    open_backbone,
)
from audiocls.model.stock import NOT_KEPT
from audiocls.storage import complete_folder

MakeModel = Callable[..., LoadedModel]
HERE = Path("config.json")


@pytest.fixture
def saved(build_model: MakeModel, tmp_path: Path) -> Path:
    """A fine-tuned model's folder."""
    save_model(build_model(), tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_config_of_known_fields_is_what_transformers_reads(saved: Path) -> None:
    theirs = AutoConfig.from_pretrained(saved).to_dict()
    ours = load_for_inference(str(saved), stock=True).model.model.config.to_dict()
    ignored = NOT_KEPT - {"id2label", "label2id", "problem_type"} | {"_name_or_path"}
    assert {key for key in theirs if theirs[key] != ours.get(key)} <= ignored


def test_a_config_cannot_name_code_or_change_what_forward_returns(saved: Path) -> None:
    evil = {"auto_map": {"AutoConfig": "evil.Evil"}, "attn_implementation": "evil/kernel"}
    evil |= {"return_dict": False, "trust_remote_code": True}
    edit(saved / "config.json", **evil, quantization_config={"quant_method": "gptq"})
    assert isinstance(load_for_inference(str(saved)).model, SpeechClassifier)  # which knows none of them
    config = load_for_inference(str(saved), stock=True).model.model.config
    assert config.return_dict is True
    assert not {"auto_map", "quantization_config", "trust_remote_code"} & set(config.to_dict())
    assert config._attn_implementation == "sdpa"


def test_json_is_finite_shallow_regular_and_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    for text in ('{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "[" * 100_000, "[]", "", "\ud800"):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError):
            read_json(path)
    path.write_text('{"a": [1, 2.5]}')
    assert read_json(path) == {"a": [1, 2.5]}
    monkeypatch.setattr("audiocls.model.files.MOST_JSON_BYTES", 5)
    with pytest.raises(UserError, match="larger"):
        read_json(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("conv_stride", [0, 1]),
        ("attention_dropout", 1.5),
        ("sampling_rate", 10**9),
        ("hidden_size", -1),
        pytest.param("hidden_size", 10**400, id="too large for a float"),
        ("num_conv_pos_embeddings", 10**5),  # layers, in Data2Vec-Audio
        ("hidden_act", {"a": 1}),
        ("conv_dim", [1] * 5_000),
    ],
)
def test_a_setting_outside_its_limits_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        known_fields({name: value}, [name], HERE)
    assert known_fields({name: value}, ["other"], HERE) == {}


@pytest.mark.parametrize(
    ("architecture", "file", "changes", "why"),
    [
        ("whisper", "preprocessor_config.json", {"chunk_length": 10**6}, "preprocessor_config.json makes"),
        ("whisper", "preprocessor_config.json", {"chunk_length": 0}, "preprocessor_config.json makes"),
        (
            "audio-spectrogram-transformer",
            "config.json",
            {"max_length": 10**6},
            "preprocessor_config.json makes",
        ),
        ("audio-spectrogram-transformer", "config.json", {"patch_size": 10**4}, "describes"),
        ("audio-spectrogram-transformer", "config.json", {"patch_size": 0}, "do not fit"),
        ("wav2vec2-bert", "config.json", {"left_max_position_embeddings": 10**7}, "describes"),
        ("wav2vec2-bert", "config.json", {"conv_depthwise_kernel_size": 10**6 + 1}, "describes"),
        ("wav2vec2", "config.json", {"conv_kernel": [10**6] * 7}, "describes|audio for one frame"),
        ("wav2vec2", "config.json", {"conv_kernel": [0] * 7}, "audio for one frame"),
        ("data2vec-audio", "config.json", {"conv_pos_kernel_size": 10**7}, "describes"),
    ],
    ids=str,
)
def test_a_size_that_the_rest_of_the_files_contradicts_is_refused_when_the_model_is_loaded(
    architecture: str, file: str, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    save_backbone(architecture, tmp_path)
    edit(tmp_path / file, **changes)
    with pytest.raises(UserError, match=why) as refusal:
        load_for_training(open_backbone(str(tmp_path)), ["a", "b"], seed=0)
    assert "\n" not in str(refusal.value)


def test_labels_are_one_text_for_each_number_and_none_twice() -> None:
    assert labels_in({"id2label": {"1": "b", "0": "a"}}, HERE) == ["a", "b"]
    for id2label in ({"0": "a", "1": "a"}, {"0": "a", "2": "b"}, {"0": 1}, {}, ["a"], {"00": "a"}):
        with pytest.raises(UserError, match="id2label"):
            labels_in({"id2label": id2label}, HERE)


def test_labels_that_name_nothing_are_none_to_train_on_from() -> None:
    assert named_labels({"id2label": {"1": "b", "0": "LABEL_0"}}, HERE) == ["LABEL_0", "b"]
    for id2label in ({"0": "a", "1": "a"}, None, [], {"0": "LABEL_0"}, {"1": "LABEL_1", "0": "LABEL_0"}):
        assert named_labels({"id2label": id2label}, HERE) == []
    assert named_labels({}, HERE) == []


@pytest.mark.parametrize("shard", ["../a.safetensors", "/a.safetensors", "a/b.safetensors", "..", "a.bin"])
def test_an_index_names_only_files_beside_it(tmp_path: Path, shard: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    files = {index.name: index}
    with pytest.raises(UserError, match="names"):
        weight_files("x", lambda name: files.get(name, tmp_path / name if "/" in name else None))


def test_tensors_are_plain_finite_and_no_larger_than_what_they_hold() -> None:
    check_tensors({"a": torch.ones(2), "b": torch.zeros(0), "c": torch.ones(2, dtype=torch.bfloat16)}, "x")
    bad = (
        torch.tensor([1, float("nan")]),
        torch.tensor([float("-inf")]).half(),
        torch.zeros(1).expand(10**9),
        torch.zeros(2).to_sparse(),
        1,
    )
    for value in bad:
        with pytest.raises(UserError):
            check_tensors({"a": value}, "x")


def test_more_weights_than_the_files_hold_are_refused_before_they_are_made(saved: Path) -> None:
    edit(saved / "config.json", hidden_size=2**16, intermediate_size=2**20)  # 2 x 150 billion
    for load in (load_for_inference, lambda name: load_for_training(open_backbone(name), ["a", "b"], seed=0)):
        with pytest.raises(UserError, match="describes"):
            load(str(saved))


def test_what_only_a_forward_pass_shows_wrong_is_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    for name in ("projector.weight", "classifier.weight"):
        weights[name].fill_(3e38)  # finite, and the scores are not
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(UserError, match="scores that are not finite"):
        load_for_inference(str(saved))


def test_a_feature_extractor_of_another_class_or_rate_is_refused(saved: Path) -> None:
    path = saved / "preprocessor_config.json"
    for changes in ({"sampling_rate": 0}, {"sampling_rate": "16000"}, {"feature_extractor_type": "Evil"}):
        before = path.read_text()
        edit(path, **changes)
        with pytest.raises(UserError, match="preprocessor_config"):
            open_backbone(str(saved))
        path.write_text(before)


# Folders


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A run folder with a best model."""
    with complete_folder(tmp_path / "run" / "best", step=1) as unfinished:
        for file in saved.iterdir():
            (unfinished / file.name).write_bytes(file.read_bytes())
    return tmp_path / "run"


def test_a_run_folder_stands_for_its_best_model_whether_to_classify_or_to_train_on(
    saved: Path, run: Path
) -> None:
    assert model_folder(str(run)) == str(run / "best")
    assert model_folder(str(saved)) == str(saved)
    assert model_folder("facebook/wav2vec2-base") == "facebook/wav2vec2-base"
    for with_labels in (False, True):
        assert open_backbone(f"{run}/", with_labels=with_labels).name == str(run / "best")
    (run / "best").rename(run / ".best.old")  # as a run leaves it that is killed between two renames
    assert open_backbone(str(run)).name == str(run / "best")


def test_a_folder_without_a_model_is_refused_and_of_a_run_it_says_what_is_missing(tmp_path: Path) -> None:
    for name in (str(tmp_path), f"{tmp_path}/"):
        with pytest.raises(UserError, match="holds no model: give a run folder"):
            open_backbone(name)
    (tmp_path / "run.json").write_text("{}")
    for load in (load_for_inference, open_backbone):
        with pytest.raises(UserError, match=r"a run without best/.* \(--resume\)"):
            load(str(tmp_path))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda file: edit(file, id2label={"0": "x", "1": "y", "2": "z"}), "is not as it was written"),
        (lambda file: os.truncate(file, 10), "is not as it was written"),
        (lambda file: file.unlink(), "is missing"),
    ],
    ids=["edited", "cut", "removed"],
)
def test_a_file_that_is_not_as_it_was_written_is_named_and_how_to_accept_it(
    harm: Callable[[Path], None], why: str, run: Path
) -> None:
    harm(run / "best" / "config.json")
    checksums = run / "best" / "checksums.json"
    says = f"{run / 'best'}: config.json {why}. If that was you, delete {checksums} to use it as it is."
    for load in (load_for_inference, open_backbone):
        with pytest.raises(InputOutputFailed) as refusal:
            load(str(run))
        assert str(refusal.value) == says


def test_labels_edited_by_hand_count_once_the_checksums_are_deleted(run: Path) -> None:
    edit(run / "best" / "config.json", id2label={"0": "x", "1": "y", "2": "z"})
    (run / "best" / "checksums.json").unlink()
    assert load_for_inference(str(run)).backbone.labels == ("x", "y", "z")
    (note,) = load_for_training(open_backbone(str(run)), ["z"], seed=0).notes
    assert note.endswith("labels whose row of its head is kept: 1; new: 0; of its own not trained: 2 (x, y)")


def test_a_revision_of_what_is_not_on_the_hub_is_refused(run: Path) -> None:
    for name in (str(run), str(run / "best"), "tiny"):
        for with_labels in (False, True):
            with pytest.raises(UserError, match=r"has no revision 'v2': leave out --model-revision\.$"):
                open_backbone(name, "v2", with_labels=with_labels)
