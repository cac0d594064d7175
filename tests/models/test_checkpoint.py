import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seqmill.errors import UserError
from seqmill.manifest import OutputFile, write_manifest
from seqmill.models import Model, ModelConfig, load, score
from seqmill.models.checkpoint import TrainState, load_state, newest_checkpoint, save_checkpoint, snapshot, tokenizer_of
from seqmill.models.training.optim import Optimizer

FILES = ("config.json", "model.safetensors", "optimizer.safetensors", "state.json")


def state_at(step: int) -> TrainState:
    return TrainState(step, step * 100, 4.5, (4.5, 0.1 + 0.2), {"epoch": 0, "step": step}, {"steps": 9})


@pytest.fixture
def out(tmp_path: Path, model: Model) -> Path:
    """A run with one checkpoint, after 3 updates."""
    save(tmp_path / "run", model, 3)
    return tmp_path / "run"


def save(out: Path, model: Model, step: int, keep_last: int = 5) -> Path:
    optimizer = Optimizer(model, "adamw", (0.9, 0.95), 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.0)
    return save_checkpoint(out, model.config, snapshot(model, optimizer), state_at(step), keep_last)


def test_a_loaded_model_is_the_saved_one_from_the_run_or_from_its_checkpoint(out: Path, model: Model) -> None:
    checkpoint = newest_checkpoint(out)
    assert checkpoint == out / "checkpoints" / "step-00000003"
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted((*FILES, "manifest.json"))
    assert len({path.stat().st_mode for path in checkpoint.iterdir()}) == 1  # readable by the same people
    for loaded in (load(out), load(str(checkpoint))):
        assert loaded.config == model.config
        for name, parameter in model.named_parameters():
            assert torch.equal(loaded.get_parameter(name), parameter)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert load_state(checkpoint) == state_at(3)


def test_the_newest_of_several_checkpoints_is_loaded_and_older_ones_are_deleted(out: Path, model: Model) -> None:
    for step in (6, 12, 100):
        with torch.no_grad():
            model.norm.weight.fill_(step)
        save(out, model, step, keep_last=2)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000012", "step-00000100"]
    assert (load(out).norm.weight == 100).all()


def test_a_checkpoint_without_the_optimizer_still_loads(out: Path, tmp_path: Path) -> None:
    slim = tmp_path / "slim"
    slim.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(out / "checkpoints" / "step-00000003" / name, slim)
    write_manifest(slim, "checkpoint", [OutputFile.of(slim, name, 1) for name in ("config.json", "model.safetensors")])
    assert torch.equal(load(slim).embedding.weight, load(out).embedding.weight)


def test_weights_may_be_loaded_in_half_precision(out: Path) -> None:
    half = load(out, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    ids = [list(range(40))]
    torch.testing.assert_close(*(torch.from_numpy(score(m, ids)[0]) for m in (half, load(out))), rtol=0.1, atol=0.2)


def test_a_folder_without_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"holds no checkpoint.*--out"):
            load(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_a_damaged_checkpoint_is_refused_by_its_file(out: Path, name: str, damage: str) -> None:
    path = out / "checkpoints" / "step-00000003" / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        content[-3] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=name):
        load(path.parent if damage != "missing" or name != "config.json" else out)


def test_a_checkpoint_of_another_architecture_is_refused(out: Path, config: ModelConfig) -> None:
    checkpoint = out / "checkpoints" / "step-00000003"
    weights = load_file(checkpoint / "model.safetensors")

    def pretend(values: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
        (checkpoint / "config.json").write_text(json.dumps(values))
        save_file(tensors, checkpoint / "model.safetensors")
        write_manifest(checkpoint, "checkpoint", [OutputFile.of(checkpoint, name, 1) for name in FILES])

    pretend({"architectures": ["OtherForCausalLM"], "hidden_size": 32}, weights)
    with pytest.raises(UserError, match=r"no seqmill decoder.*architectures"):
        load(out)
    pretend(config.to_json(), {**weights, "blocks.0.router.weight": torch.zeros(3)})
    with pytest.raises(UserError, match=r"different architectures.*blocks\.0\.router\.weight"):
        load(out)
    pretend({**config.to_json(), "ffn_dim": 64}, weights)
    with pytest.raises(UserError, match=r"gate_up\.weight has shape \(96, 32\).*asks for \(128, 32\)"):
        load(out)


def test_an_unknown_device_or_type_is_refused(out: Path) -> None:
    with pytest.raises(UserError, match=r"'abacus'.*no such device"):
        load(out, device="abacus")
    with pytest.raises(UserError, match=r"'float8'.*no such type"):
        load(out, dtype="float8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_asking_for_cuda_where_there_is_none_is_refused(out: Path) -> None:
    with pytest.raises(UserError, match=r"sees no CUDA device.*--device cpu"):
        load(out, device="cuda")


def test_a_full_disk_leaves_the_older_checkpoint_and_no_rubbish(
    out: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("seqmill.models.huggingface.save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save(out, model, 6)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000003"]
    load(out)


def test_the_tokenizer_of_a_checkpoint_is_the_one_of_its_run_and_never_a_neighbours(tmp_path: Path) -> None:
    run, hub, bare = tmp_path / "run", tmp_path / "hub", tmp_path / "bare"
    step = run / "checkpoints" / "step-00000001"
    for folder in (tmp_path / "tokenizer", run / "tokenizer", step, hub, bare):
        folder.mkdir(parents=True)
    (hub / "tokenizer.json").write_text("{}")
    assert tokenizer_of(run) == tokenizer_of(step) == run / "tokenizer"
    assert tokenizer_of(hub) == hub
    assert tokenizer_of(bare) is None
