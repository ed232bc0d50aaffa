"""An snnTorch network with its own loop over time: TGO, a picture of its potentials, an audit."""

import snntorch as snn
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import spikeguard as sg


class Net(nn.Module):
    def __init__(self, num_steps: int = 5) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.fc1, self.lif1 = nn.Linear(28 * 28, 100), snn.Leaky(beta=0.9)
        self.fc2, self.lif2 = nn.Linear(100, 10), snn.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.reset_mem(), self.lif2.reset_mem()
        spikes, membranes = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


torch.manual_seed(0)
model = sg.wrap(Net(), output=1, mean=0.286, std=0.353)  # output=0: the rates of the spikes

data = sg.load_data("embedded")
train, test = data.train.balanced(500), data.test.balanced(20)
adam = torch.optim.Adam(model.parameters(), 2e-3)
with sg.guard(model, total_steps=30) as guard:  # TGO: this line, the penalty and the step
    for _ in range(3):
        for rows in torch.randperm(500).split(50):
            adam.zero_grad()
            loss = F.cross_entropy(model(train.pixels()[rows]), train.y[rows])
            (loss + guard.penalty()).backward()
            adam.step()
            guard.step()

with sg.tap(model.eval()) as tap:
    model(test.pixels())
tap.draw("potentials.svg", delta=0.5)

x, y = test.pixels(), test.y
report = sg.audit(model, x, y, sg.Linf(4 / 255), effort="quick")
print(report.verdict)
