"""infer.py's shorter import of torch: what is left out is there when something needs it."""

from pathlib import Path

import pytest
from architectures import save_backbone
from data_helpers import ROOT, run_script, write_wav

from audiocls.model.files import save_model
from audiocls.model.loading import load_for_training, open_backbone

LEAN = "import sys\nfrom audiocls.lean_torch import complete_torch, import_lean_torch\nimport_lean_torch()\n"
USE = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU())
program = torch.export.export(model, (torch.ones(2, 3),)).module()
torch.testing.assert_close(program(torch.ones(2, 3)), model(torch.ones(2, 3)))
logits = model.to("meta")(torch.ones(2, 3, device="meta"))
torch.nn.functional.cross_entropy(logits, torch.zeros(2, dtype=torch.long, device="meta"))
"""


@pytest.mark.parametrize("program", [LEAN + "complete_torch()" + USE, "import torch\n" + LEAN + USE])
def test_a_completed_torch_exports_and_knows_shapes(program: str) -> None:
    finished = run_script("-c", program)
    assert finished.returncode == 0, finished.stderr


def test_it_leaves_out_what_only_compiling_needs() -> None:
    code = "print({'torch._refs', 'torch._decomp', 'sympy'} & set(sys.modules))"
    finished = run_script("-c", LEAN + code)
    assert (finished.returncode, finished.stdout.strip()) == (0, "set()"), finished.stderr


@pytest.mark.parametrize("architecture", ["wav2vec2", "data2vec-audio"])  # without transformers, and with it
def test_infer_classifies_and_exports(architecture: str, tmp_path: Path) -> None:
    save_backbone(architecture, tmp_path / "backbone")
    backbone = open_backbone(str(tmp_path / "backbone"))
    save_model(load_for_training(backbone, ["a", "b"], seed=0), tmp_path / "model")
    write_wav(tmp_path / "one.wav")
    script, model = str(ROOT / "infer.py"), str(tmp_path / "model")
    export = ["--export", "torch", "--output", str(tmp_path / "m.pt2")]
    for arguments in ([str(tmp_path / "one.wav")], export):
        finished = run_script(script, model, *arguments, timeout=120, fresh=True)
        assert finished.returncode == 0, finished.stderr
