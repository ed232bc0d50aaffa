"""Run in a process of its own, with spikingjelly 0.0.0.0.14 on the path.

Its neurons in eval mode, under plain PGD and under the audit.
"""

import json
import sys

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

import spikeguard as sg

EPS = 16 / 255


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(196, 64), nn.Linear(64, 10)
        self.fire = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        current = 2 * self.first((F.avg_pool2d(x, 2) - 0.286).flatten(1) / 0.353)
        return torch.stack([self.last(self.fire(current)) for _ in range(4)]).mean(0)


def pgd(net: nn.Module, x: Tensor, y: Tensor, eps: float = EPS) -> float:
    """PGD-20 as an old library wrote it: a missing gradient is passed over without a word."""
    z = x.clone()
    for _ in range(20):
        leaf = z.clone().requires_grad_()
        loss = F.cross_entropy(net(leaf), y)
        g = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
        z = z if g is None else (z + eps / 8 * g.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    with torch.no_grad():
        return float((net(z).argmax(1) == y).double().mean())


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = sg.load_data("embedded")
    train, test = data.train.balanced(2000), data.test.balanced(100)
    x, y, net = test.pixels(), test.y, Net().train()
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(6):
        for rows in torch.randperm(2000).split(100):
            adam.zero_grad()
            F.cross_entropy(net(train.pixels()[rows]), train.y[rows]).backward()
            adam.step()
    net.eval()
    told: dict[str, float] = {"eval": pgd(net, x, y)}
    net.fire.training = True
    told["train"] = pgd(net, x, y)
    net.eval()
    try:
        sg.pgd(net, x, y, sg.Linf(EPS))
        single = ""
    except sg.AttackError as error:
        single = str(error)
    model = sg.wrap(net, sample=x)
    clean = model(x)
    told["wrapped"] = pgd(model, x, y)
    got = sg.audit(net, x, y, sg.Linf(EPS), effort="quick")
    json.dump(
        {
            **told,
            "single": single,
            "notes": model.notes,
            "same": torch.equal(clean, net(x)) and not any(m.training for m in net.modules()),
            "audit": got.robust_accuracy,
            "clean": got.clean_accuracy,
            "errors": [f.id for f in got.flags if f.level == "error"],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
