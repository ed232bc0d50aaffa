"""A norse network, whose state is an argument: TGO, a picture of its potentials, an audit."""

import norse.torch as norse
import torch
import torch.nn.functional as F
from torch import nn

import spikeguard as sg

torch.manual_seed(0)
fast = norse.LIFParameters(tau_mem_inv=torch.tensor(500.0), tau_syn_inv=torch.tensor(900.0))
net = norse.SequentialState(
    nn.Conv2d(1, 8, 5, stride=2),
    norse.LIFCell(p=fast),
    nn.Flatten(),
    nn.Linear(8 * 12 * 12, 10),
)

# the second part of its answer is the state, which goes into the next step
model = sg.wrap(net, timesteps=8, output=0, state=1, std=0.1)

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
