"""The eval-mode trap, measured: ``PYTHONPATH=FOLDER python tools/eval_mode_trap.py``.

FOLDER holds spikingjelly 0.0.0.0.14, whose neurons pass no gradient in eval mode. A network of it is
trained until it is good, then judged unedited: by a PGD that passes over a missing gradient, in eval mode and
with the neurons in training mode, and by an audit. A few CPU minutes.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

import spikeguard as sg

sys.path.append(str(Path(__file__).parents[1] / "tests" / "conformance"))
from old_spikingjelly import pgd

EPS, EPOCHS, IMAGES = 8 / 255, 8, 100


class Net(nn.Module):
    """Two convolutions with neurons, and a linear readout of their rates in four steps."""

    def __init__(self) -> None:
        super().__init__()
        fires = [neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan()) for _ in range(2)]
        first = nn.Sequential(nn.Conv2d(1, 12, 5, 2, 2), nn.BatchNorm2d(12), fires[0])
        second = nn.Sequential(nn.Conv2d(12, 24, 5, 2, 2), nn.BatchNorm2d(24), fires[1])
        self.body = nn.Sequential(first, second, nn.Flatten(), nn.Linear(24 * 49, 10))

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        return torch.stack([self.body((x - 0.286) / 0.353) for _ in range(4)]).mean(0)


def main() -> None:
    torch.manual_seed(0)
    data = sg.load_data("embedded")
    x, y = data.train.pixels(), data.train.y
    net = Net().train()
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, EPOCHS)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(100):
            adam.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()
        rate.step()
    test = data.test.balanced(IMAGES)
    x, y = test.pixels(), test.y
    found = {"eval_mode": pgd(net.eval(), x, y, EPS)}
    for module in net.modules():
        module.training = isinstance(module, neuron.LIFNode)
    found["training_mode"] = pgd(net, x, y, EPS)
    print(json.dumps(found), flush=True)
    report = sg.audit(net.eval(), x, y, sg.Linf(EPS), effort="quick")
    print(report.verdict, [f.id for f in report.flags])


if __name__ == "__main__":
    main()
