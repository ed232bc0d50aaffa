"""A SpikingJelly network: TGO, a picture of its potentials, an audit."""

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import nn

import spikeguard as sg

torch.manual_seed(0)
net = nn.Sequential(
    layer.Conv2d(1, 8, 3, padding=1),
    layer.BatchNorm2d(8),
    neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan()),
    layer.MaxPool2d(2),
    layer.Flatten(),
    layer.Linear(8 * 14 * 14, 10),
)

model = sg.wrap(net, timesteps=4, mean=0.286, std=0.353)  # four steps a call, reset around each

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
