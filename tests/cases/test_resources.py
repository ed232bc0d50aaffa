"""What a call leaves open, as ``python -X dev`` sees it."""

import subprocess
import sys
from pathlib import Path

CODE = """
import torch, spikeguard as sg
from torch import nn
torch.set_num_threads(1)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
x = torch.rand(4, 1, 8, 8)
y = net(x).argmax(1)
result = sg.audit(net, x, y, sg.Linf(0.03), effort="quick", out="audit")
assert sg.verify(result.record, "audit", net, x, y).wrong == ()
try:
    sg.audit(net, x, y + 9, sg.Linf(0.03), out="audit")
except sg.UserError as error:
    print(error)
"""


def test_an_audit_with_a_folder_leaves_nothing_open(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr
    assert "labels lie in" in done.stdout
