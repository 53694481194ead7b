# SPDX-License-Identifier: Apache-2.0
"""Muon (orthogonalised momentum) for the hidden matrices, AdamW for everything else."""
import torch


def orthogonalize(g, steps=5):
    """Push the singular values of each matrix of the stack g [n, rows, cols] towards 1.

    A quintic Newton-Schulz iteration, whose coefficients trade exactness for a steep
    start: the values end near 1 (about 0.7 to 1.2), which is enough for a step direction.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = g.shape[1] <= g.shape[2]
    x = g if wide else g.transpose(1, 2)
    x = x.bfloat16() if g.is_cuda else x  # exact enough for a direction, and what a GPU is quick at
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        s = x @ x.transpose(1, 2)
        x = a * x + (b * s + c * (s @ s)) @ x
    return x if wide else x.transpose(1, 2)


class Muon:
    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        """params: (parameter, factor of the learning rate) pairs."""
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        by_shape = {}
        for p, factor in params:
            by_shape.setdefault((tuple(p.shape), factor), []).append(p)
        self.groups = [
            (ps, factor, torch.zeros(len(ps), *shape, device=ps[0].device)) for (shape, factor), ps in by_shape.items()
        ]

    @torch.no_grad()
    def step(self, scale):
        for ps, factor, buf in self.groups:
            lr = self.lr * scale * factor
            g = torch.stack([p.grad for p in ps])
            buf.lerp_(g, 1 - self.momentum)
            update = orthogonalize(g.lerp(buf, self.momentum))  # Nesterov's look-ahead
            gain = max(1.0, buf.shape[1] / buf.shape[2]) ** 0.5
            for p, u in zip(ps, update):
                p.mul_(1 - lr * self.weight_decay).add_(u, alpha=-lr * gain)

    def state_dict(self):
        return {"buffers": [buf for _, _, buf in self.groups]}

    def load_state_dict(self, state):
        for (_, _, buf), saved in zip(self.groups, state["buffers"], strict=True):
            buf.copy_(saved)


class Optimizer:
    """Both optimizers behind one step(); `scale` multiplies every learning rate.

    slow: factors of Muon's learning rate for parameters with such a part in their names.
    """

    def __init__(self, model, muon_lr, embedding_lr, norm_lr, weight_decay, slow):
        self.params = list(model.parameters())
        hidden = [
            (p, min((factor for part, factor in slow.items() if part in n), default=1.0))
            for n, p in model.named_parameters()
            if p.dim() == 2 and "embed" not in n
        ]
        embedding = [p for n, p in model.named_parameters() if "embed" in n]
        norms = [p for p in model.parameters() if p.dim() == 1]
        self.muon = Muon(hidden, muon_lr, weight_decay=weight_decay)
        groups = [{"params": embedding, "base": embedding_lr}, {"params": norms, "base": norm_lr}]
        self.adam = torch.optim.AdamW(groups, lr=norm_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, scale):
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.muon.step(scale)
        for group in self.adam.param_groups:
            group["lr"] = group["base"] * scale
        self.adam.step()
        for p in self.params:
            p.grad = None

    def state_dict(self):
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
